"""FaceXFormer's encoder with its pyramid head on stage means, and the temporal query attention, folded.

Source: docs/architecture.md sections 8 and 22.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import (
    FoldedTemporalXattn,
    TemporalXattnWeights,
    fold_temporal_xattn,
    tap_pool_,
    temporal_xattn,
)

from ..config import FaceConfig
from ..modules.face import imagenet_normalized
from .cuda_graphs import Replayed, replayed
from .layers.attention import cache_chunks
from .layers.linear import layer_norm
from .layers.swin import Stage
from .layers.tensor_store import Buffers, TensorStore, pack

_PATCH = 4  # side of a patch in pixels


class FastFace(Replayed):
    """FaceEncoder on the official tensors under `facial_encoder.facexformer.`."""

    stages: Sequence[Stage]
    head: Tensor  # [F, sum of the stages' widths], fp32 at load
    head_bias: Tensor  # [F]

    def __init__(self, config: FaceConfig, weights: TensorStore):
        super().__init__()
        self.config = config
        self.replays = not config.imagenet_normalize  # it copies constants from the host
        backbone = weights.under("backbone.0.")
        self.patch_embedding = pack(backbone.take("0.0.weight").flatten(1), backbone.take("0.0.bias"))
        self.norm = backbone.norm("0.2")
        stages = [Stage(config, backbone, number) for number in range(len(config.depths))]
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        head, bias = _fold_head(weights, len(config.depths))
        self.register_buffer("head", head)
        self.register_buffer("head_bias", bias)

    def embed(self, frames: Tensor) -> tuple[Tensor, int, int]:
        """frames [N,3,H,W] in 0..255 -> patches [N,h*w,C], h, w; H and W are padded to whole patches."""
        if self.config.imagenet_normalize:
            frames = imagenet_normalized(frames)
        H, W = frames.shape[2:]
        pixels = frames.to(self.norm.weight.dtype)
        if H % _PATCH or W % _PATCH:  # padding by nothing would still copy
            pixels = F.pad(pixels, (0, -W % _PATCH, 0, -H % _PATCH))
        tiles = pixels.unflatten(3, (-1, _PATCH)).unflatten(2, (-1, _PATCH)).permute(0, 2, 4, 1, 3, 5)
        patches = self.patch_embedding(tiles.flatten(3).flatten(1, 2))
        return layer_norm(patches, self.norm), tiles.shape[1], tiles.shape[2]

    @replayed
    def forward(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in 0..255 -> [B,T,feature_size] in the dtype of the weights."""
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"want frames [B, T, 3, H, W], got {list(frames.shape)}")
        B, T = frames.shape[:2]
        dtype = self.norm.weight.dtype
        means = torch.zeros(B * T, self.head.shape[1], device=frames.device)
        patches = frames[0, 0, 0].numel() // _PATCH**2
        mlp_width = int(self.config.mlp_ratio * self.config.embed_dim)  # of the first stage, the largest
        chunks = cache_chunks(frames.flatten(0, 1), patches * mlp_width * dtype.itemsize)
        for chunk, out in zip(chunks, means.split(len(chunks[0])), strict=True):
            self._encode_chunk(chunk, out)
        features = F.linear(means, self.head.float(), self.head_bias.float())
        return features.to(dtype).unflatten(0, (B, T))

    def _encode_chunk(self, frames: Tensor, out: Tensor) -> None:
        """Encode frames [n,3,H,W]; add the mean over positions of every stage to out [n, sum of widths]."""
        hidden, height, width = self.embed(frames)
        target = (height, width)
        slices = out.split([stage.width for stage in self.stages], 1)
        for stage, stage_mean in zip(self.stages, slices, strict=True):
            hidden = stage(hidden, height, width)
            _add_mean_(stage_mean, hidden, (height, width), target)
            if stage.merge is not None:
                hidden = stage.merge(hidden, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2


def _fold_head(weights: TensorStore, stages: int) -> tuple[Tensor, Tensor]:
    """One matrix for the linear layer of each stage and the 1x1 convolution that joins them.

    Everything between a stage and the mean over positions is linear, so that the mean can come first.

    Returns:
        Matrix [F, sum of widths] and bias [F], fp32.
    """
    # The convolution's input has the last stage first.
    fuse = weights.take("linear_fuse.weight").flatten(1).double().chunk(stages, 1)[::-1]
    linears = [weights.under(f"linear_c.{stage}.proj.") for stage in range(stages)]
    pairs = list(zip(fuse, linears, strict=True))
    matrix = [part @ linear.take("weight").double() for part, linear in pairs]
    bias = [part @ linear.take("bias").double() for part, linear in pairs]
    return torch.cat(matrix, 1).float(), torch.stack(bias).sum(0).float()


def _add_mean_(out: Tensor, hidden: Tensor, size: tuple[int, int], target: tuple[int, int]) -> None:
    """out [N,C] += mean over positions of hidden [N,h*w,C], resized bilinearly from `size` to `target`."""
    if all(large % small == 0 for large, small in zip(target, size, strict=True)):
        tap_pool_(out, hidden, 1.0, "mean")  # every position has the same weight
        return
    rows, columns = (
        _resize_weights(small, large, out.device) for small, large in zip(size, target, strict=True)
    )
    weights = torch.outer(rows, columns).flatten()
    out += torch.einsum("l,nlc->nc", weights, hidden.float())


def _resize_weights(small: int, large: int, device: torch.device) -> Tensor:
    """Weight of each of `small` positions in the mean after linear resizing to `large`: [small], fp32."""
    identity = torch.eye(small, device=device)[None]
    return F.interpolate(identity, large, mode="linear", align_corners=False)[0].mean(1)


class FastFaceHead(nn.Module):
    """FaceHead on the official tensors under `facial_encoder.`."""

    def __init__(self, config: FaceConfig, weights: TensorStore):
        super().__init__()
        names = (
            "query", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
            "face_proj.0.weight", "face_proj.0.bias", "face_proj.3.weight", "face_proj.3.bias",
        )  # fmt: skip
        fields = {name.replace(".", "_"): weights.take(name) for name in names}
        self.folded = Buffers(fold_temporal_xattn(TemporalXattnWeights(**fields), config.query_heads))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """features [B,T,F], any T -> tokens [B,M,width], attention [B,heads,M,T] in fp32."""
        return temporal_xattn(features, FoldedTemporalXattn(*self.folded.buffers()), need_attention=True)
