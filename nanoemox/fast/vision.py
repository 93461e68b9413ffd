"""CLIP's vision tower up to the last layer that is read, of which only row 0 is computed."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import Tap

from ..config import VisionConfig
from .cuda_graphs import Replayed, replayed
from .layers.attention import pieces
from .layers.linear import has_fused_ops
from .layers.tensor_store import TensorStore, pack
from .layers.transformer import MLP, Block, first_row_attention, run_pre_norm, self_attention, step

_QUICK = 1.702


class FastVision(Replayed):
    """VisionEncoder on the official tensors under `visual_encoder.model.vision_model.`."""

    blocks: Sequence[Block]  # all but the last
    last: Block | None

    def __init__(self, config: VisionConfig, weights: TensorStore):
        super().__init__()
        self.config = config
        embeddings = weights.under("embeddings.")
        position = embeddings.take("position_embedding.weight").clone()
        position[0] += embeddings.take("class_embedding")
        self.position = nn.Parameter(position, requires_grad=False)
        patches = embeddings.take("patch_embedding.weight").flatten(1)
        # cuBLAS wants widths in multiples of 8: 588 numbers a patch take three times as long as 592.
        self.wide = patches.shape[1] + (-patches.shape[1] % 8 if has_fused_ops(patches) else 0)
        self.patches = pack(F.pad(patches, (0, self.wide - patches.shape[1])), None)
        self.norm = weights.norm("pre_layrnorm", config.layer_norm_eps)
        self.scale, self.shift = self._pixel_constants()
        self.read = (*config.taps, config.feature_layer)
        count = max(self.read)
        layers = [_block(config, weights.under(f"encoder.layers.{i}."), i + 1 == count) for i in range(count)]
        self.blocks = nn.ModuleList(layers[:-1])  # type: ignore[assignment]
        self.last = layers[-1] if layers else None

    def _pixel_constants(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of `preprocess`, [3,1,1] each, in fp32 whatever the dtype of the weights.

        They are made in advance because a CUDA graph cannot copy constants from the host.
        """
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (self.config.mean, self.config.std)
        )
        device = self.position.device
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FastVision":
        super()._apply(fn, recurse)
        self.scale, self.shift = self._pixel_constants()
        return self

    def preprocess(self, frames: Tensor) -> Tensor:
        """frames [N,3,H,W] in 0..255, truncated to whole grey levels -> normalised pixel values, fp32."""
        return torch.addcmul(self.shift, frames.to(torch.uint8), self.scale)

    def embed(self, frames: Tensor) -> Tensor:
        """frames [n,3,H,W] in 0..255 -> [n,1+patches,D]."""
        p, grid = self.config.patch_size, self.config.image_size // self.config.patch_size
        pixels = self.preprocess(frames)[..., : grid * p, : grid * p]
        tiles = pixels.unflatten(3, (grid, p)).unflatten(2, (grid, p)).permute(0, 2, 4, 1, 3, 5)
        rows = self.position.new_zeros(
            len(frames), 1 + grid**2, self.wide
        )  # row 0 stays nothing but its position
        rows[:, 1:, : 3 * p * p].unflatten(2, (3, p, p)).unflatten(1, (grid, grid)).copy_(tiles)
        return step(self.patches(rows), self.position.expand(len(frames), -1, -1), self.norm)

    def read_layers(self, frames: Tensor, out: Tensor) -> None:
        """Add row 0 of every layer that is read, frames [n,3,H,W], to its slice of out [n,(L+1)*D], features last."""
        hidden, last = self.embed(frames), self.last

        def taps(entry: int) -> list[Tap]:
            slices = out.split(hidden.shape[2], 1)
            return [Tap(kept) for layer, kept in zip(self.read, slices, strict=True) if layer == entry]

        y = run_pre_norm(hidden, None, self.blocks, None if last is None else last.norm1, taps)
        if last is not None:
            rows = hidden[:, :1].contiguous()
            update = last.mlp(step(rows, last.attention(y), last.norm2))
            step(rows, update, None, taps(max(self.read)))

    @replayed
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B,T,3,H,W] in 0..255 -> features [B,T,D], taps [B,T,L*D]."""
        B, T = frames.shape[:2]
        size, (rows, D), dtype = self.config.image_size, self.position.shape, self.position.dtype
        if frames.shape[2:] != (3, size, size):
            raise ValueError(f"want frames [B, T, 3, {size}, {size}], got {list(frames.shape)}")
        out = torch.zeros(B * T, len(self.read) * D, device=frames.device)
        parts = pieces(frames.flatten(0, 1), rows * self.config.mlp_size * dtype.itemsize)
        for part, slices in zip(parts, out.split(len(parts[0])), strict=True):
            self.read_layers(part, slices)
        kept = out.to(dtype).unflatten(0, (B, T))
        return kept[..., -D:], kept[..., :-D]


def _block(config: VisionConfig, weights: TensorStore, last: bool) -> Block:
    attention = (first_row_attention if last else self_attention)(weights.under("self_attn."), config.heads)
    norm1, norm2 = (weights.norm(f"layer_norm{i}", config.layer_norm_eps) for i in (1, 2))
    if config.activation != "quick_gelu":
        mlp = MLP(weights.linear("mlp.fc1", activation=config.activation), weights.linear("mlp.fc2"))
        return Block(norm1, attention, norm2, mlp)
    if has_fused_ops(norm2.weight):
        return Block(
            norm1, attention, norm2, MLP(weights.linear("mlp.fc1"), weights.linear("mlp.fc2"), quick=True)
        )
    # x sigmoid(1.702 x) = silu(1.702 x) / 1.702: one factor goes into the norm before, the other behind the
    # MLP.
    for parameter in norm2.parameters():
        parameter.data = parameter * _QUICK
    up, down = weights.linear("mlp.fc1", activation="silu"), weights.linear("mlp.fc2")
    for layer in (up, down):
        assert layer.bias is not None
        layer.bias.data = layer.bias * _QUICK
    return Block(norm1, attention, norm2, MLP(up, down, scale=1 / _QUICK))
