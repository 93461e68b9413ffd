"""FaceXFormer's encoder with its pyramid head on stage means, and the temporal query attention folded."""

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
from .layers.attention import pieces
from .layers.linear import normed
from .layers.swin import Stage
from .layers.tensor_store import Buffers, TensorStore, pack

_PATCH = 4


class FastFace(Replayed):
    """FaceEncoder on the official tensors under `facial_encoder.facexformer.`."""

    pyramid: Sequence[Stage]
    head: Tensor
    head_bias: Tensor

    def __init__(self, config: FaceConfig, weights: TensorStore):
        super().__init__()
        self.config = config
        self.replays = not config.imagenet_normalize  # it copies constants from the host
        backbone = weights.under("backbone.0.")
        self.patches = pack(backbone.take("0.0.weight").flatten(1), backbone.take("0.0.bias"))
        self.norm = backbone.norm("0.2")
        stages = [Stage(config, backbone, stage) for stage in range(len(config.depths))]
        self.pyramid = nn.ModuleList(stages)  # type: ignore[assignment]
        head, bias = _fold_head(weights, len(config.depths))
        self.register_buffer("head", head)
        self.register_buffer("head_bias", bias)

    def embed(self, frames: Tensor) -> tuple[Tensor, int, int]:
        """frames [N,3,H,W] in 0..255 -> patches [N,h*w,C], h, w; sides that do not divide are padded."""
        if self.config.imagenet_normalize:
            frames = imagenet_normalized(frames)
        H, W = frames.shape[2:]
        pixels = frames.to(self.norm.weight.dtype)
        if H % _PATCH or W % _PATCH:  # padding by nothing would still copy
            pixels = F.pad(pixels, (0, -W % _PATCH, 0, -H % _PATCH))
        tiles = pixels.unflatten(3, (-1, _PATCH)).unflatten(2, (-1, _PATCH)).permute(0, 2, 4, 1, 3, 5)
        return normed(self.patches(tiles.flatten(3).flatten(1, 2)), self.norm), tiles.shape[1], tiles.shape[2]

    @replayed
    def forward(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in 0..255 -> [B,T,feature_size]."""
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"want frames [B, T, 3, H, W], got {list(frames.shape)}")
        dtype = self.norm.weight.dtype
        means = torch.zeros(frames.shape[0] * frames.shape[1], self.head.shape[1], device=frames.device)
        widest = frames[0, 0, 0].numel() // _PATCH**2 * int(self.config.mlp_ratio * self.config.embed_dim)
        parts = pieces(frames.flatten(0, 1), widest * dtype.itemsize)
        for part, rows in zip(parts, means.split(len(parts[0])), strict=True):
            self.pool_stages(part, rows)
        return (
            F.linear(means, self.head.float(), self.head_bias.float())
            .to(dtype)
            .unflatten(0, frames.shape[:2])
        )

    def pool_stages(self, frames: Tensor, means: Tensor) -> None:
        """Add the mean over positions of every stage's output, frames [n,3,H,W], to its slice of means [n,widths]."""
        hidden, *size = self.embed(frames)
        target = tuple(size)
        for stage, mean in zip(
            self.pyramid, means.split([stage.width for stage in self.pyramid], 1), strict=True
        ):
            hidden = stage(hidden, *size)
            _pool_(mean, hidden, (size[0], size[1]), target)
            if stage.merge is not None:
                hidden = stage.merge(hidden, *size)
                size = [(side + 1) // 2 for side in size]


def _fold_head(weights: TensorStore, stages: int) -> tuple[Tensor, Tensor]:
    """A linear layer a stage and the 1x1 convolution that joins them: [F, sum of widths] and [F], in fp32.

    Everything between a stage and the mean over positions is linear, so the mean may come first.
    """
    fuse = (
        weights.take("linear_fuse.weight").flatten(1).double().chunk(stages, 1)[::-1]
    )  # the last stage comes first
    stems = [weights.under(f"linear_c.{stage}.proj.") for stage in range(stages)]
    matrix = [part @ stem.take("weight").double() for part, stem in zip(fuse, stems, strict=True)]
    bias = [part @ stem.take("bias").double() for part, stem in zip(fuse, stems, strict=True)]
    return torch.cat(matrix, 1).float(), torch.stack(bias).sum(0).float()


def _pool_(out: Tensor, hidden: Tensor, size: tuple[int, int], target: tuple[int, ...]) -> None:
    """out [N,C] += mean of hidden [N,h*w,C] as if it were first resized to `target`, bilinearly."""
    if all(large % small == 0 for large, small in zip(target, size, strict=True)):
        tap_pool_(out, hidden, 1.0, "mean")  # then every position counts alike
        return
    rows, columns = (
        F.interpolate(torch.eye(small, device=out.device)[None], large, mode="linear", align_corners=False)[
            0
        ].mean(1)
        for small, large in zip(size, target, strict=True)
    )
    out += torch.einsum("l,nlc->nc", torch.outer(rows, columns).flatten(), hidden.float())


class FastFaceHead(nn.Module):
    """FaceHead on the official tensors under `facial_encoder.`."""

    def __init__(self, config: FaceConfig, weights: TensorStore):
        super().__init__()
        names = (
            "query", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
            "face_proj.0.weight", "face_proj.0.bias", "face_proj.3.weight", "face_proj.3.bias",
        )  # fmt: skip
        raw = TemporalXattnWeights(**{name.replace(".", "_"): weights.take(name) for name in names})
        self.folded = Buffers(fold_temporal_xattn(raw, config.query_heads))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """features [B,T,F], any T -> tokens [B,M,width], attention [B,heads,M,T] in fp32."""
        return temporal_xattn(features, FoldedTemporalXattn(*self.folded.buffers()), need_attention=True)
