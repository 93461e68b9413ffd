"""CLIP's vision tower up to the last hidden state that is read, whose layer computes row 0 alone.

Source: docs/architecture.md sections 2 and 22.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import Tap

from ..config import VisionConfig
from .cuda_graphs import Replayed, replayed
from .layers.attention import cache_chunks
from .layers.linear import has_fused_ops
from .layers.tensor_store import TensorStore, pack
from .layers.transformer import MLP, Block, add_norm, first_row_attention, run_pre_norm, self_attention

_QUICK_GELU = 1.702  # quick GELU is x sigmoid(1.702 x)


class FastVision(Replayed):
    """VisionEncoder on the official tensors under `visual_encoder.model.vision_model.`."""

    blocks: Sequence[Block]  # all but the last
    last_block: Block | None

    def __init__(self, config: VisionConfig, weights: TensorStore):
        super().__init__()
        self.config = config
        embeddings = weights.under("embeddings.")
        position = embeddings.take("position_embedding.weight").clone()
        position[0] += embeddings.take("class_embedding")
        self.position = nn.Parameter(position, requires_grad=False)
        patch_weight = embeddings.take("patch_embedding.weight").flatten(1)
        # cuBLAS wants widths in multiples of 8: 588 numbers a patch take three times as long as 592.
        padding = -patch_weight.shape[1] % 8 if has_fused_ops(patch_weight) else 0
        self.patch_width = patch_weight.shape[1] + padding
        self.patch_embedding = pack(F.pad(patch_weight, (0, padding)), None)
        self.norm = weights.norm("pre_layrnorm", config.layer_norm_eps)
        self.scale, self.shift = self._pixel_constants()
        self.hidden_states = (*config.taps, config.feature_layer)  # numbers of those that are read
        count = max(self.hidden_states)
        blocks = [
            _block(config, weights.under(f"encoder.layers.{number}."), number + 1 == count)
            for number in range(count)
        ]
        self.blocks = nn.ModuleList(blocks[:-1])  # type: ignore[assignment]
        self.last_block = blocks[-1] if blocks else None

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
        """frames [n,3,H,W] in 0..255 -> patches with the class row first, normalised [n,1+patches,D]."""
        patch = self.config.patch_size
        grid = self.config.image_size // patch
        pixels = self.preprocess(frames)[..., : grid * patch, : grid * patch]
        tiles = pixels.unflatten(3, (grid, patch)).unflatten(2, (grid, patch)).permute(0, 2, 4, 1, 3, 5)
        # Row 0 stays zero: the class embedding was added to its position.
        rows = self.position.new_zeros(len(frames), 1 + grid**2, self.patch_width)
        targets = rows[:, 1:, : 3 * patch**2].unflatten(2, (3, patch, patch)).unflatten(1, (grid, grid))
        targets.copy_(tiles)
        return add_norm(self.patch_embedding(rows), self.position.expand(len(frames), -1, -1), self.norm)

    def _encode_chunk(self, frames: Tensor, out: Tensor) -> None:
        """Encode frames [n,3,H,W] and add row 0 of the hidden states to out [n,(L+1)*D], taps first."""
        hidden = self.embed(frames)
        slices = out.split(hidden.shape[2], 1)

        def taps(number: int) -> list[Tap]:
            return [
                Tap(target) for read, target in zip(self.hidden_states, slices, strict=True) if read == number
            ]

        last = self.last_block
        y = run_pre_norm(hidden, None, self.blocks, None if last is None else last.norm1, taps)
        if last is not None:
            class_row = hidden[:, :1].contiguous()
            normed = add_norm(class_row, last.attention(y), last.norm2)
            add_norm(class_row, last.mlp(normed), None, taps(max(self.hidden_states)))

    @replayed
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B,T,3,H,W] in 0..255 -> features [B,T,D], taps [B,T,L*D], in the dtype of the weights."""
        B, T = frames.shape[:2]
        size = self.config.image_size
        if frames.shape[2:] != (3, size, size):
            raise ValueError(f"want frames [B, T, 3, {size}, {size}], got {list(frames.shape)}")
        rows, D = self.position.shape
        dtype = self.position.dtype
        sums = torch.zeros(B * T, len(self.hidden_states) * D, device=frames.device)
        chunks = cache_chunks(frames.flatten(0, 1), rows * self.config.mlp_size * dtype.itemsize)
        for chunk, out in zip(chunks, sums.split(len(chunks[0])), strict=True):
            self._encode_chunk(chunk, out)
        class_rows = sums.to(dtype).unflatten(0, (B, T))
        return class_rows[..., -D:], class_rows[..., :-D]


def _block(config: VisionConfig, weights: TensorStore, is_last: bool) -> Block:
    attention_weights = weights.under("self_attn.")
    build_attention = first_row_attention if is_last else self_attention
    attention = build_attention(attention_weights, config.heads)
    norm1, norm2 = (weights.norm(f"layer_norm{number}", config.layer_norm_eps) for number in (1, 2))
    if config.activation != "quick_gelu":
        mlp = MLP(weights.linear("mlp.fc1", activation=config.activation), weights.linear("mlp.fc2"))
    elif has_fused_ops(norm2.weight):
        mlp = MLP(weights.linear("mlp.fc1"), weights.linear("mlp.fc2"), quick_gelu=True)
    else:
        mlp = _silu_mlp(weights, norm2)
    return Block(norm1, attention, norm2, mlp)


def _silu_mlp(weights: TensorStore, norm: nn.LayerNorm) -> MLP:
    """The MLP with SiLU in place of quick GELU: x sigmoid(1.702 x) = silu(1.702 x) / 1.702.

    oneDNN applies SiLU within the product. The inner factor goes into the norm before the MLP (which is
    changed) and its bias; the outer one scales the result.
    """
    for parameter in norm.parameters():
        parameter.data = parameter * _QUICK_GELU
    up, down = weights.linear("mlp.fc1", activation="silu"), weights.linear("mlp.fc2")
    for layer in (up, down):
        assert layer.bias is not None
        layer.bias.data = layer.bias * _QUICK_GELU
    return MLP(up, down, scale=1 / _QUICK_GELU)
