"""Official tensor names of our modules' parameters, in one table (docs/architecture.md sections 15 and 16).

A bundle holds the official names, because attribute names of Hugging Face's modules change between releases.
The patterns accept those of every release from 5.17 on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import NanoEmoXConfig


@dataclass(frozen=True)
class Target:
    """An official tensor and the parameters that it fills: several if a fused projection is cut by rows."""

    name: str
    parts: tuple[str, ...]


_QFORMER = [
    (r"query_tokens", r"{stem}_query_tokens"),
    (r"norm\.(.*)", r"{stem}_Qformer.bert.embeddings.LayerNorm.\1"),
    (r"layers\.(\d+)\.mlp\.up\.(.*)", r"{stem}_Qformer.bert.encoder.layer.\1.intermediate_query.dense.\2"),
    (r"layers\.(\d+)\.mlp\.down\.(.*)", r"{stem}_Qformer.bert.encoder.layer.\1.output_query.dense.\2"),
    (r"layers\.(\d+)\.mlp\.norm\.(.*)", r"{stem}_Qformer.bert.encoder.layer.\1.output_query.LayerNorm.\2"),
    (r"layers\.(\d+)\.(\w+)\.(query|key|value)\.(.*)", r"{stem}_Qformer.bert.encoder.layer.\1.\2.self.\3.\4"),
    (r"layers\.(\d+)\.(\w+)\.dense\.(.*)", r"{stem}_Qformer.bert.encoder.layer.\1.\2.output.dense.\3"),
    (r"layers\.(\d+)\.(\w+)\.norm\.(.*)", r"{stem}_Qformer.bert.encoder.layer.\1.\2.output.LayerNorm.\3"),
]


def _qformer(prefix: str, stem: str) -> list[tuple[str, str]]:
    return [(prefix + pattern, name.format(stem=stem)) for pattern, name in _QFORMER]


_FUSION = {
    "multiscale": [
        (r"fusion\.proj\.(.*)", r"multi_llama_proj.\1"),
        (r"fusion\.experts\.(\d+)\.attn\.(.*)", r"multi_multiscale_fusion.cross_attns.\1.\2"),
        (r"fusion\.experts\.(\d+)\.ffn\.(.*)", r"multi_multiscale_fusion.ffns.\1.\2"),
        (r"fusion\.(.*)", r"multi_multiscale_fusion.\1"),
    ],
    "attention": [
        (r"fusion\.proj\.(.*)", r"multi_llama_proj.\1"),
        (r"fusion\.(video|audio)_embs\.(.*)", r"multi_\1_embs.\2"),
        (r"fusion\.(.*)", r"\1"),
    ],
    "qformer": [
        (r"fusion\.proj\.(.*)", r"multi_llama_proj.\1"),
        (r"fusion\.(video|audio)_embs\.(.*)", r"multi_\1_embs.\2"),
        (r"fusion\.position\.(.*)", r"multi_position_embedding.\1"),
        *_qformer(r"fusion\.qformer\.", "multi"),
    ],
    "densemoe": [
        (r"fusion\.proj\.(.*)", r"multi_moe_fusion.llm_projector.\1"),
        (r"fusion\.router\.(.*)", r"multi_moe_fusion.routing_network.router.\1"),
        (
            r"fusion\.experts\.(\d+)\.(video|audio)_embs\.(.*)",
            r"multi_moe_fusion.experts.\1.multi_\2_embs.\3",
        ),
        (r"fusion\.(.*)", r"multi_moe_fusion.\1"),
    ],
}

_SWIN_STEM = r"face\.swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_SWIN_BLOCK = "facial_encoder.facexformer.backbone.0.{stage}.{block}."
_SWIN = [  # (pattern after the block's stem, torchvision's name)
    (r"layernorm_before\.(\w+)", r"norm1.\1"),
    (r"layernorm_after\.(\w+)", r"norm2.\1"),
    (r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"attn.proj.\1"),
    (r"attention\.[\w.]*relative_position_bias_table", r"attn.relative_position_bias_table"),
    (r"(?:mlp\.fc1|intermediate\.dense)\.(\w+)", r"mlp.0.\1"),
    (r"(?:mlp\.fc2|output\.dense)\.(\w+)", r"mlp.3.\1"),
]
_SWIN_QKV = r"attention\.(?:self\.)?(q|k|v|query|key|value)(?:_proj)?\.(\w+)"

_PARTS = [
    (r"vision\.model\.(?:vision_model\.)?(.*)", r"visual_encoder.model.vision_model.\1"),
    (r"audio\.model\.(.*)", r"acoustic_encoder.model.\1"),
    (
        r"face\.swin\.embeddings\.patch_embeddings\.projection\.(\w+)",
        r"facial_encoder.facexformer.backbone.0.0.0.\1",
    ),
    (r"face\.swin\.embeddings\.norm\.(\w+)", r"facial_encoder.facexformer.backbone.0.0.2.\1"),
    (r"face\.swin\.layernorm\.(\w+)", r"facial_encoder.facexformer.backbone.1.\1"),
    (r"face\.linear_c\.(\d+)\.(\w+)", r"facial_encoder.facexformer.linear_c.\1.proj.\2"),
    (r"face\.linear_fuse\.(\w+)", r"facial_encoder.facexformer.linear_fuse.\1"),
    (r"face_head\.project\.(.*)", r"facial_encoder.face_proj.\1"),
    (r"face_head\.(.*)", r"facial_encoder.\1"),
    *_qformer(r"video_branch\.qformer\.", "video"),
    *_qformer(r"audio_branch\.qformer\.", "audio"),
    (r"video_branch\.position\.(.*)", r"video_frame_position_embedding.\1"),
    (r"audio_branch\.position\.(.*)", r"audio_position_embedding.\1"),
    (r"(video|audio)_branch\.weight\.(.*)", r"\1_attention_mlp.\2"),
    (r"video_branch\.proj\.(.*)", r"video_proj.\1"),
    (r"audio_branch\.proj\.(.*)", r"audio_llama_proj.\1"),
    (r"language\.model\.(.*)", r"llama_model.\1"),
]  # fmt: skip


def _official(key: str, config: NanoEmoXConfig) -> tuple[str, int]:
    """The official name of a parameter, and which third of that tensor it is.

    The third is 0 except for the keys (1) and values (2) of Swin, whose projections are fused officially.
    """
    block = re.match(_SWIN_STEM, key)
    if block:
        stem = _SWIN_BLOCK.format(stage=2 * int(block[1]) + 1, block=block[2])
        return _swin_name(key[block.end() :], stem)
    merge = re.match(r"face\.swin\.encoder\.layers\.(\d+)\.downsample\.(.*)", key)
    if merge:
        return f"facial_encoder.facexformer.backbone.0.{2 * int(merge[1]) + 2}.{merge[2]}", 0
    return _look_up(key, _FUSION[config.fusion.type] + _PARTS), 0


def _swin_name(key: str, stem: str) -> tuple[str, int]:
    """The same for a parameter of a Swin block, whose official names begin with `stem`."""
    qkv = re.fullmatch(_SWIN_QKV, key)
    if qkv:
        return f"{stem}attn.qkv.{qkv[2]}", "qkv".index(qkv[1][0])
    return stem + _look_up(key, _SWIN), 0


def _look_up(key: str, table: list[tuple[str, str]]) -> str:
    for pattern, name in table:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(name)
    raise KeyError(key)  # a module of ours without a row in the table


def targets(model: nn.Module, config: NanoEmoXConfig) -> list[Target]:
    """Every official tensor of the model, in the order of its parameters. A tied head is not among them."""
    parts: dict[str, dict[int, str]] = {}
    for key, _ in model.named_parameters():  # shared parameters are listed once, under their first name
        name, third = _official(key, config)
        parts.setdefault(name, {})[third] = key
    return [Target(name, tuple(keys[i] for i in sorted(keys))) for name, keys in parts.items()]


class OfficialTensors(Mapping[str, Tensor]):
    """The tensors of a model under their official names. A fused projection is joined when it is read.

    Attributes:
        shapes: official name -> shape.
        dtypes: official name -> dtype of the model's parameters.
    """

    def __init__(self, model: nn.Module, config: NanoEmoXConfig):
        self._parameters = dict(model.named_parameters())
        self._parts = {target.name: target.parts for target in targets(model, config)}
        self.shapes = {name: self._shape(name) for name in self._parts}
        self.dtypes: dict[str, torch.dtype] = {
            name: self._parameters[parts[0]].dtype for name, parts in self._parts.items()
        }

    def _shape(self, name: str) -> tuple[int, ...]:
        parts = [self._parameters[part].shape for part in self._parts[name]]
        if not parts[0]:
            return ()
        return (sum(part[0] for part in parts), *parts[0][1:])

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, detached, on the CPU."""
        tensors = [self._parameters[part].detach().cpu() for part in self._parts[name]]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def shapes(model: nn.Module, config: NanoEmoXConfig) -> dict[str, tuple[int, ...]]:
    """Official name -> shape, of every tensor that a bundle of this model holds."""
    return OfficialTensors(model, config).shapes
