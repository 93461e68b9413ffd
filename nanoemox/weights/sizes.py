"""Sizes and variants of the model, read off the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import replace

from ..config import BranchConfig, FaceConfig, FusionConfig, LoRAConfig, NanoEmoXConfig, QFormerConfig

_SWIN = "facial_encoder.facexformer.backbone.0"
_BERT_HEAD_SIZE = 64


class _Shapes:
    """Official name -> shape."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def size(self, name: str, axis: int, default: int) -> int:
        """A dimension of a tensor, or the default if there is no such tensor or axis."""
        shape = self.shapes.get(name, ())
        return shape[axis] if len(shape) > axis else default

    def count(self, pattern: str) -> int:
        """How many values the first group of a pattern takes in the names that begin with it."""
        matches = (re.match(pattern, name) for name in self.shapes)
        return len({match[1] for match in matches if match})

    def ranks(self) -> set[int]:
        """Ranks of the adapters."""
        names = [name for name in self.shapes if name.endswith(".lora_A.default.weight")]
        return {self.shapes[name][0] for name in names if self.shapes[name]}


def infer_config(config: NanoEmoXConfig, shapes: Mapping[str, tuple[int, ...]]) -> NanoEmoXConfig:
    """`config` with every size and variant that can be read off `shapes`.

    Args:
        config: has the values that shapes do not tell: numbers of heads, taps, dropout.
        shapes: official name -> shape.
    """
    tensors = _Shapes(shapes)
    video_width, audio_width = config.vision.hidden_size, config.audio.hidden_size
    return replace(
        config,
        face=_face(config.face, tensors),
        qformer=_qformer(config.qformer, tensors),
        fusion=_fusion(config.fusion, tensors),
        lora=_lora(config.lora, tensors),
        video_branch=_branch(
            config.video_branch,
            tensors,
            stem="video",
            positions="video_frame_position_embedding.weight",
            projection="video_proj.weight",
            encoder_width=video_width,
        ),
        audio_branch=_branch(
            config.audio_branch,
            tensors,
            stem="audio",
            positions="audio_position_embedding.weight",
            projection="audio_llama_proj.weight",
            encoder_width=audio_width,
        ),
    )


def _face(face: FaceConfig, tensors: _Shapes) -> FaceConfig:
    if f"{_SWIN}.0.0.weight" not in tensors:
        return face
    stages = [f"{_SWIN}.{2 * stage + 1}" for stage in range(4)]
    tables = [f"{stage}.0.attn.relative_position_bias_table" for stage in stages]
    embed_dim = tensors.size(f"{_SWIN}.0.0.weight", 0, face.embed_dim)
    mlp_size = tensors.size(f"{_SWIN}.1.0.mlp.0.weight", 0, round(embed_dim * face.mlp_ratio))
    # A table has (2 * window - 1) ** 2 rows and a column per head.
    table_rows = tensors.size(tables[0], 0, (2 * face.window_size - 1) ** 2)
    return replace(
        face,
        embed_dim=embed_dim,
        depths=tuple(tensors.count(rf"{re.escape(stage)}\.(\d+)\.") for stage in stages),
        heads=tuple(tensors.size(table, 1, heads) for table, heads in zip(tables, face.heads, strict=True)),
        window_size=(round(table_rows**0.5) + 1) // 2,
        mlp_ratio=mlp_size / embed_dim,
        feature_size=tensors.size("facial_encoder.facexformer.linear_c.0.proj.weight", 0, face.feature_size),
        queries=tensors.size("facial_encoder.query", 0, face.queries),
        projector_size=tensors.size("facial_encoder.face_proj.0.weight", 0, face.projector_size),
    )


def _qformer(qformer: QFormerConfig, tensors: _Shapes) -> QFormerConfig:
    for stem in ("video", "audio", "multi"):
        if f"{stem}_query_tokens" not in tensors:
            continue
        encoder = f"{stem}_Qformer.bert.encoder.layer"
        hidden_size = tensors.size(f"{stem}_query_tokens", 2, qformer.hidden_size)
        heads = qformer.heads
        if hidden_size != qformer.hidden_size:
            heads = max(1, hidden_size // _BERT_HEAD_SIZE)
        qformer = replace(
            qformer,
            hidden_size=hidden_size,
            heads=heads,
            layers=tensors.count(rf"{re.escape(encoder)}\.(\d+)\."),
            mlp_size=tensors.size(f"{encoder}.0.intermediate_query.dense.weight", 0, qformer.mlp_size),
        )
    return qformer


def _fusion(fusion: FusionConfig, tensors: _Shapes) -> FusionConfig:
    if "multi_multiscale_fusion.audio_proj.weight" in tensors:
        hidden_size = tensors.size("multi_multiscale_fusion.audio_proj.weight", 0, fusion.hidden_size)
        return replace(fusion, type="multiscale", hidden_size=hidden_size)
    if "multi_moe_fusion.llm_projector.weight" in tensors:
        router = "multi_moe_fusion.routing_network.router.0.weight"
        return replace(
            fusion,
            type="densemoe",
            experts=tensors.count(r"multi_moe_fusion\.experts\.(\d+)\."),
            router_size=tensors.size(router, 0, fusion.router_size),
        )
    if "multi_query_tokens" in tensors:
        return replace(
            fusion,
            type="qformer",
            tokens=tensors.size("multi_query_tokens", 1, 1),
            positions=tensors.size("multi_position_embedding.weight", 0, fusion.positions),
        )
    if "fc_att.weight" in tensors:
        return replace(fusion, type="attention")
    return fusion


def _lora(lora: LoRAConfig | None, tensors: _Shapes) -> LoRAConfig | None:
    ranks = tensors.ranks()
    if not ranks:
        return None
    if lora is None or len(ranks) > 1 or lora.rank in ranks:
        return lora
    (rank,) = ranks
    return replace(lora, rank=rank, alpha=2 * rank)  # the official scaling is 2


def _branch(
    branch: BranchConfig,
    tensors: _Shapes,
    *,
    stem: str,
    positions: str,
    projection: str,
    encoder_width: int,
) -> BranchConfig:
    if f"{stem}_query_tokens" in tensors:
        return replace(
            branch,
            type="qformer",
            tokens=tensors.size(f"{stem}_query_tokens", 1, branch.tokens),
            positions=tensors.size(positions, 0, branch.positions),
        )
    kind = "attention" if f"{stem}_attention_mlp.weight" in tensors else branch.type
    # Without queries, a projection that reads the encoder's width belongs to a mean.
    if kind == "qformer" and tensors.size(projection, 1, 0) == encoder_width:
        kind = "mean"
    return replace(branch, type=kind)
