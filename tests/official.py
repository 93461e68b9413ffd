"""Phase checkpoints and base models as they are published, at any size, with values from recipe.fill."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from recipe import fill
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanoemox.build import build_empty
from nanoemox.bundle.official_names import shapes
from nanoemox.config import (
    AudioConfig,
    BranchConfig,
    FaceConfig,
    FusionConfig,
    LanguageConfig,
    LoRAConfig,
    NanoEmoXConfig,
    QFormerConfig,
    VisionConfig,
)

NARROW = NanoEmoXConfig(
    name="narrow",
    vision=VisionConfig(
        hidden_size=32, layers=4, heads=2, mlp_size=64, patch_size=56, taps=(1, 2, 3), feature_layer=3
    ),
    audio=AudioConfig(
        hidden_size=32, layers=4, heads=2, mlp_size=64, conv_dim=(16,) * 7, position_kernel=8,
        position_groups=2, taps=(1, 2, 3), feature_layers=(1, 2, 3, 4),
    ),
    face=FaceConfig(embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), feature_size=16, projector_size=24),
    qformer=QFormerConfig(hidden_size=128, heads=2, mlp_size=96),
    video_branch=BranchConfig(tokens=5),
    audio_branch=BranchConfig(tokens=6, positions=8),
    fusion=FusionConfig(hidden_size=16, heads=8),
    language=LanguageConfig(
        vocab_size=400, hidden_size=48, layers=2, heads=4, kv_heads=2, head_dim=12, mlp_size=64,
        max_positions=2048,
    ),
    lora=LoRAConfig(rank=4, alpha=8),
)  # fmt: skip


def tensors(config: NanoEmoXConfig) -> dict[str, tuple[int, ...]]:
    return shapes(build_empty(config, config.name), config)


def value(name: str, shape) -> torch.Tensor:
    """fp32, as the official file holds it. Adapters are made small, so that merging keeps the model sane."""
    return fill(name, list(shape)) * (0.02 if ".lora_B." in name else 1)


def strip(names, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def is_trained(name: str) -> bool:
    return ".lora_" in name or not name.startswith(
        ("visual_encoder.", "acoustic_encoder.", "facial_encoder.facexformer.", "llama_model.")
    )


def checkpoint(config: NanoEmoXConfig, path: Path, **changes) -> Path:
    """A phase-3 file. `changes` maps a name to another or a new tensor, or to None to leave it out."""
    expected = tensors(config)
    model = {name: value(name, shape) for name, shape in expected.items() if is_trained(name)}
    language, width = config.language, config.language.hidden_size
    extras = {
        "llama_model.base_model.model.lm_head.weight": torch.zeros(
            language.vocab_size, width, dtype=torch.float16
        ),
        "image_llama_proj.weight": torch.zeros(width, config.vision.hidden_size),
        "image_llama_proj.bias": torch.zeros(width),
        "facial_encoder.lynorm.weight": torch.ones(config.face.feature_size),
        "facial_encoder.lynorm.bias": torch.zeros(config.face.feature_size),
    }
    for stem in ("video", "audio"):
        extras[f"{stem}_Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
        extras[f"multi_{stem}_embs.weight"] = torch.zeros((config.vision.hidden_size,) * 2)
        extras[f"multi_{stem}_embs.bias"] = torch.zeros(config.vision.hidden_size)
    for stage, depth in enumerate(config.face.depths):
        for block in range(depth):
            stem = f"facial_encoder.facexformer.backbone.0.{2 * stage + 1}.{block}.attn"
            extras[f"{stem}.relative_position_index"] = torch.arange(2401)
    model = {k: v for k, v in {**model, **extras, **changes}.items() if v is not None}
    torch.save({"model": model, "optimizer": {}, "config": {"run": {}}, "scaler": None, "epoch": 60}, path)
    return path


def components(
    config: NanoEmoXConfig, folder: Path, *, old_spelling: bool = False, changes=None
) -> dict[str, Path]:
    """The four base models. `changes` maps a published name to another tensor or to None."""
    expected, changes = tensors(config), changes or {}
    paths = {name: folder / name for name in ("clip", "hubert", "qwen")} | {"facexformer": folder / "face.pt"}
    for name in ("clip", "hubert", "qwen"):
        paths[name].mkdir(parents=True)

    def published(names: dict[str, str], dtype=torch.float32, **more) -> dict[str, torch.Tensor]:
        out = {theirs: value(official, expected[official]).to(dtype) for theirs, official in names.items()}
        out |= more
        out |= {name: new for name, new in changes.items() if name in out or name.startswith("new.")}
        return {name: tensor.contiguous() for name, tensor in out.items() if tensor is not None}

    vision, audio, language = config.vision, config.audio, config.language
    text = {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    vision_tensors = published(strip(expected, "visual_encoder.model."), **text)
    save_file(vision_tensors, paths["clip"] / "model.safetensors")
    _config(
        paths["clip"], model_type="clip",
        vision_config={
            "hidden_size": vision.hidden_size, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "intermediate_size": vision.mlp_size,
            "patch_size": vision.patch_size, "hidden_act": "quick_gelu", "image_size": vision.image_size,
            "layer_norm_eps": 1e-5,
        },
    )  # fmt: skip

    names = strip(expected, "acoustic_encoder.model.")
    if old_spelling:
        spelling = {
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v",
        }
        for new, old in spelling.items():
            names = {name.replace(new, old): official for name, official in names.items()}
        torch.save(published(names), paths["hubert"] / "pytorch_model.bin")
    else:
        save_file(published(names), paths["hubert"] / "model.safetensors")
    _config(
        paths["hubert"], model_type="hubert", hidden_size=audio.hidden_size, num_hidden_layers=audio.layers,
        num_attention_heads=audio.heads, intermediate_size=audio.mlp_size, conv_dim=list(audio.conv_dim),
        conv_kernel=list(audio.conv_kernel), conv_stride=list(audio.conv_stride), conv_bias=True,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=audio.position_kernel,
        num_conv_pos_embedding_groups=audio.position_groups, layer_norm_eps=1e-5, hidden_act="gelu",
    )  # fmt: skip
    (paths["hubert"] / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))

    face = published(strip(expected, "facial_encoder.facexformer."), **{"face_decoder.x": torch.zeros(2)})
    torch.save({"state_dict_backbone": face}, paths["facexformer"])

    base = {
        theirs.replace(".base_layer", ""): official
        for theirs, official in strip(expected, "llama_model.base_model.model.").items()
        if ".lora_" not in theirs
    }
    qwen = published(base, torch.bfloat16)
    half = len(qwen) // 2
    for i, part in enumerate((list(qwen)[:half], list(qwen)[half:]), 1):
        save_file({name: qwen[name] for name in part}, paths["qwen"] / f"model-{i:05}-of-00002.safetensors")
    _config(
        paths["qwen"], model_type="qwen2", vocab_size=language.vocab_size, hidden_size=language.hidden_size,
        num_hidden_layers=language.layers, num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads, intermediate_size=language.mlp_size, rms_norm_eps=1e-6,
        rope_theta=1e6, tie_word_embeddings=True,
        max_position_embeddings=language.max_positions, use_sliding_window=False,
    )  # fmt: skip
    _tokenizer(paths["qwen"])
    return paths


def _config(folder: Path, **values) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def _tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["### the person is happy ###"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def untied(config: NanoEmoXConfig) -> NanoEmoXConfig:
    return replace(config, language=replace(config.language, tied_embeddings=False))
