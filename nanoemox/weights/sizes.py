"""Sizes that official files tell by themselves: their config.json and the shapes of their tensors."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import AudioConfig, LanguageConfig, NanoEmoXConfig, VisionConfig
from ..errors import CheckpointError, UsageError
from .checkpoints import read_json

Shapes = dict[str, tuple[int, ...]]


def infer_config(config: NanoEmoXConfig, shapes: Shapes) -> NanoEmoXConfig:
    """`config` with every size and variant that can be read off `shapes` (official name -> shape)."""

    def dim(name: str, axis: int, default: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis else default

    def count(pattern: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(pattern, name))})

    face, swin = config.face, "facial_encoder.facexformer.backbone.0."
    if f"{swin}0.0.weight" in shapes:
        stages = range(4)
        tables = [f"{swin}{2 * s + 1}.0.attn.relative_position_bias_table" for s in stages]
        embed = dim(f"{swin}0.0.weight", 0, face.embed_dim)
        face = replace(
            face,
            embed_dim=embed,
            depths=tuple(count(rf"{re.escape(swin)}{2 * s + 1}\.(\d+)\.") for s in stages),
            heads=tuple(dim(table, 1, heads) for table, heads in zip(tables, face.heads, strict=True)),
            window_size=(round(dim(tables[0], 0, (2 * face.window_size - 1) ** 2) ** 0.5) + 1) // 2,
            mlp_ratio=dim(f"{swin}1.0.mlp.0.weight", 0, round(embed * face.mlp_ratio)) / embed,
            feature_size=dim("facial_encoder.facexformer.linear_c.0.proj.weight", 0, face.feature_size),
            queries=dim("facial_encoder.query", 0, face.queries),
            projector_size=dim("facial_encoder.face_proj.0.weight", 0, face.projector_size),
        )

    def branch(known: Any, stem: str, positions: str) -> Any:
        if f"{stem}_query_tokens" in shapes:
            tokens = dim(f"{stem}_query_tokens", 1, known.tokens)
            return replace(known, type="qformer", tokens=tokens, positions=dim(positions, 0, known.positions))
        kind = "attention" if f"{stem}_attention_mlp.weight" in shapes else known.type
        # Without queries the projection reads the encoder's width: only then is it a mean.
        proj = {"video": "video_proj.weight", "audio": "audio_llama_proj.weight"}[stem]
        encoder = config.vision.hidden_size if stem == "video" else config.audio.hidden_size
        if kind == "qformer" and dim(proj, 1, 0) == encoder:
            kind = "mean"
        return replace(known, type=kind)

    qformer, fusion, lora = config.qformer, config.fusion, config.lora
    for stem in ("video", "audio", "multi"):
        if f"{stem}_query_tokens" in shapes:
            width = dim(f"{stem}_query_tokens", 2, qformer.hidden_size)
            qformer = replace(
                qformer,
                hidden_size=width,
                heads=qformer.heads
                if width == qformer.hidden_size
                else max(1, width // 64),  # BERT's heads are 64 wide
                layers=count(rf"{stem}_Qformer\.bert\.encoder\.layer\.(\d+)\."),
                mlp_size=dim(
                    f"{stem}_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight",
                    0,
                    qformer.mlp_size,
                ),
            )
    if "multi_multiscale_fusion.audio_proj.weight" in shapes:
        hidden = dim("multi_multiscale_fusion.audio_proj.weight", 0, fusion.hidden_size)
        fusion = replace(fusion, type="multiscale", hidden_size=hidden)
    elif "multi_moe_fusion.llm_projector.weight" in shapes:
        fusion = replace(
            fusion,
            type="densemoe",
            experts=count(r"multi_moe_fusion\.experts\.(\d+)\."),
            router_size=dim("multi_moe_fusion.routing_network.router.0.weight", 0, fusion.router_size),
        )
    elif "multi_query_tokens" in shapes:
        positions = dim("multi_position_embedding.weight", 0, fusion.positions)
        fusion = replace(fusion, type="qformer", tokens=dim("multi_query_tokens", 1, 1), positions=positions)
    elif "fc_att.weight" in shapes:
        fusion = replace(fusion, type="attention")
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.default.weight") and shape}
    if not ranks:
        lora = None
    elif lora is not None and len(ranks) == 1 and lora.rank not in ranks:
        rank = ranks.pop()
        lora = replace(lora, rank=rank, alpha=2 * rank)  # the official scaling is 2
    return replace(
        config,
        face=face,
        qformer=qformer,
        fusion=fusion,
        lora=lora,
        video_branch=branch(config.video_branch, "video", "video_frame_position_embedding.weight"),
        audio_branch=branch(config.audio_branch, "audio", "audio_position_embedding.weight"),
    )


def component_sizes(config: NanoEmoXConfig, paths: dict[str, Path]) -> NanoEmoXConfig:
    """The encoders and the language model as their own config.json describes them."""
    try:
        sized = _component_sizes(config, paths)
        return NanoEmoXConfig.from_dict(sized.to_dict())  # checks kinds too
    except (UsageError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        where = ", ".join(f"{paths[name]}/config.json" for name in ("clip", "hubert", "qwen"))
        raise CheckpointError(f"{where}: sizes that make no model ({error})") from error


def _component_sizes(config: NanoEmoXConfig, paths: dict[str, Path]) -> NanoEmoXConfig:
    """The encoders and the language model as their own config.json describes them."""
    clip = read_json(paths["clip"] / "config.json")
    clip = {**clip, **clip.get("vision_config", {})}
    hubert = read_json(paths["hubert"] / "config.json")
    processor = paths["hubert"] / "preprocessor_config.json"
    qwen = read_json(paths["qwen"] / "config.json")
    rope = qwen.get("rope_parameters") or qwen.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type") or "default") != "default" or qwen.get(
        "use_sliding_window"
    ):
        raise CheckpointError(
            f"{paths['qwen']}/config.json: scaled rotary positions and sliding windows are not supported"
        )

    if qwen.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"{paths['qwen']}/config.json: hidden_act {qwen['hidden_act']!r} is not supported, silu is"
        )

    def pick(known: Any, values: dict[str, Any], **names: str) -> dict[str, Any]:
        return {ours: values.get(theirs, getattr(known, ours)) for ours, theirs in names.items()}

    def lists(values: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    vision: VisionConfig = replace(
        config.vision,
        **pick(
            config.vision, clip, hidden_size="hidden_size", layers="num_hidden_layers", heads="num_attention_heads",
            mlp_size="intermediate_size", patch_size="patch_size", image_size="image_size", activation="hidden_act",
            layer_norm_eps="layer_norm_eps",
        ),
    )  # fmt: skip
    audio: AudioConfig = replace(
        config.audio,
        **lists(
            pick(
                config.audio, hubert, hidden_size="hidden_size", layers="num_hidden_layers",
                heads="num_attention_heads",
                mlp_size="intermediate_size", activation="hidden_act", layer_norm_eps="layer_norm_eps",
                conv_dim="conv_dim",
                conv_kernel="conv_kernel", conv_stride="conv_stride", conv_bias="conv_bias",
                conv_norm="feat_extract_norm",
                conv_activation="feat_extract_activation", projection_layer_norm="feat_proj_layer_norm",
                stable_layer_norm="do_stable_layer_norm", position_kernel="num_conv_pos_embeddings",
                position_groups="num_conv_pos_embedding_groups", position_batch_norm="conv_pos_batch_norm",
            )
        ),
        normalize=read_json(processor).get("do_normalize", True) if processor.is_file() else config.audio.normalize,
    )  # fmt: skip
    heads = qwen.get("num_attention_heads", config.language.heads)
    width = qwen.get("hidden_size", config.language.hidden_size)
    language: LanguageConfig = replace(
        config.language,
        **pick(
            config.language, qwen, model_type="model_type", vocab_size="vocab_size", hidden_size="hidden_size",
            layers="num_hidden_layers", heads="num_attention_heads", kv_heads="num_key_value_heads",
            mlp_size="intermediate_size", rms_norm_eps="rms_norm_eps", max_positions="max_position_embeddings",
            tied_embeddings="tie_word_embeddings",
        ),
        head_dim=qwen.get("head_dim") or width // heads,
        rope_theta=float(rope.get("rope_theta") or qwen.get("rope_theta", config.language.rope_theta)),
    )  # fmt: skip
    return replace(config, vision=vision, audio=audio, language=language)
