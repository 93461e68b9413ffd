"""HuBERT up to the last layer that is read; time means are summed as the layers finish."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import Tap, conv_norm_act, time_conv

from ..config import AudioConfig
from .cuda_graphs import Replayed, replayed
from .layers.attention import pieces
from .layers.linear import PackedLinear, activate_, has_fused_ops, normed
from .layers.tensor_store import TensorStore, pack
from .layers.transformer import MLP, Block, run_post_norm, run_pre_norm, self_attention


class FastAudio(Replayed):
    """AudioEncoder on the official tensors under `acoustic_encoder.model.`."""

    blocks: Sequence[Block]

    def __init__(self, config: AudioConfig, weights: TensorStore):
        super().__init__()
        self.config = config
        stem = weights.under("feature_extractor.conv_layers.")
        self.convolutions = nn.ModuleList(_Convolution(config, stem, i) for i in range(len(config.conv_dim)))
        eps, stem = config.layer_norm_eps, weights.under("feature_projection.")
        self.norm = stem.norm("layer_norm", eps) if config.projection_layer_norm else None
        self.project = stem.linear("projection")
        encoder = weights.under("encoder.")
        self.position = _PositionalConvolution(config, encoder.under("pos_conv_embed.conv."))
        self.read = [(layer, 1.0) for layer in config.taps]
        self.read += [(layer, 1 / len(config.feature_layers)) for layer in config.feature_layers]
        last = max(layer for layer, _ in self.read)
        layers = [_block(config, encoder.under(f"layers.{i}.")) for i in range(last)]
        self.blocks = nn.ModuleList(layers)  # type: ignore[assignment]
        # Post-norm it comes first and is always needed; pre-norm it follows the last layer.
        wanted = not config.stable_layer_norm or last == config.layers
        self.encoder_norm = encoder.norm("layer_norm", eps) if wanted else None

    def preprocess(self, windows: Tensor) -> Tensor:
        """windows [B,T,S] -> zero mean and unit variance as in the reference, fp32;

        one pass for both statistics.
        """
        waves = windows.float()
        if not self.config.normalize:
            return waves
        over = (1, 2) if self.config.statistics == "sample" else (0, 1, 2)
        variance, mean = torch.var_mean(waves, over, correction=0, keepdim=True)
        return (waves - mean).mul_(torch.rsqrt(variance.add_(1e-7)))

    def listen(self, waves: Tensor) -> Tensor:
        """waves [n,S], normalised -> [n,T,D]."""
        x = waves[..., None]
        for convolution in self.convolutions:
            x = convolution(x)
        return self.project(x if self.norm is None else normed(x, self.norm))

    def read_layers(self, hidden: Tensor, out: Tensor) -> None:
        """Add time means of the layers that are read, hidden [n,T,D] before the first, to out [n,(L+1)*D]."""
        slices, L = out.split(hidden.shape[2], 1), len(self.config.taps)

        def taps(entry: int) -> list[Tap]:
            # Entry `layers` is the output of the final norm, and post-norm every entry is a norm's output.
            source = "residual" if self.config.stable_layer_norm and entry < self.config.layers else "norm"
            return [
                Tap(slices[min(i, L)], weight, source, "mean")
                for i, (layer, weight) in enumerate(self.read)
                if layer == entry
            ]

        run = run_pre_norm if self.config.stable_layer_norm else run_post_norm
        run(hidden, self.position(hidden), self.blocks, self.encoder_norm, taps)

    @replayed
    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """windows [B,T,S], 16 kHz -> features [B,T,D], taps [B,T,L*D]."""
        if windows.ndim != 3:
            raise ValueError(f"want windows [B, T, samples], got {list(windows.shape)}")
        config, dtype = self.config, next(self.parameters()).dtype
        waves = self.preprocess(windows).flatten(0, 1).to(dtype)
        first = waves.shape[1] // config.conv_stride[0] * config.conv_dim[0]
        heard = [self.listen(part) for part in pieces(waves, 2 * first * dtype.itemsize)]
        hidden = torch.cat(heard) if len(heard) > 1 else heard[0]
        N, T, D = hidden.shape
        out = torch.zeros(N, (len(config.taps) + 1) * D, device=hidden.device)
        parts = pieces(hidden, T * config.mlp_size * dtype.itemsize)
        for part, slices in zip(parts, out.split(len(parts[0])), strict=True):
            self.read_layers(part, slices)
        kept = out.to(dtype).unflatten(0, windows.shape[:2])
        return kept[..., -D:], kept[..., :-D]


class _Convolution(nn.Module):
    """A layer of the front end, channels last: a product over windows of the signal, norm, activation."""

    def __init__(self, config: AudioConfig, weights: TensorStore, layer: int):
        super().__init__()
        self.kernel, self.stride = config.conv_kernel[layer], config.conv_stride[layer]
        stem = weights.under(f"{layer}.")
        has_norm = config.conv_norm == "layer" or layer == 0
        self.activation = config.conv_activation if has_norm else "none"
        bias = stem.take("conv.bias") if config.conv_bias else None
        weight = stem.take("conv.weight").transpose(1, 2).flatten(1)  # [out,kernel*in]
        self.product = pack(weight, bias, "none" if has_norm else config.conv_activation)
        self.norm = stem.norm("layer_norm") if has_norm else None
        self.over_time = config.conv_norm == "group"

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,in] -> [n,T',out]."""
        if has_fused_ops(x) and x.shape[2] == 1 and self.norm is not None and not self.over_time:
            return self.whole(x[..., 0], self.norm)
        if has_fused_ops(x) and x.shape[2] > 1:  # rows of the product are read where they lie
            weight, bias, after = self.product.plain(), self.product.bias, self.product.activation
            gelu = after == "gelu"
            x = time_conv(x, weight, bias, kernel=self.kernel, stride=self.stride, gelu=gelu)
            x = x if gelu else activate_(x, after)
        else:
            x = self.product(x.unfold(1, self.kernel, self.stride).transpose(2, 3).flatten(2))
        if self.norm is None:
            return x
        if not self.over_time:
            return normed(x, self.norm, self.activation)
        x = F.group_norm(x.transpose(1, 2), x.shape[2], self.norm.weight, self.norm.bias, self.norm.eps)
        return activate_(x.transpose(1, 2).contiguous(), self.activation)

    def whole(self, waves: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The first layer, waves [n,S] -> [n,T,out], written once."""
        weight, bias, gelu = self.product.plain(), self.product.bias, self.activation == "gelu"
        scale, shift, eps = norm.weight, norm.bias, norm.eps
        x = conv_norm_act(waves, weight, bias, scale, shift, stride=self.stride, eps=eps, gelu=gelu)
        return x if gelu else activate_(x, self.activation)


class _PositionalConvolution(nn.Module):
    """The grouped convolution along time that tells positions apart:

    a product a group, weight norm multiplied out.
    """

    groups: Sequence[PackedLinear]

    def __init__(self, config: AudioConfig, weights: TensorStore):
        super().__init__()
        self.kernel, self.activation = config.position_kernel, config.conv_activation
        self._kept: tuple[Tensor, Tensor] | None = None
        gain, direction = (weights.take(f"parametrizations.weight.original{i}") for i in (0, 1))
        weight = torch._weight_norm(direction.float(), gain.float(), 2).to(direction.dtype)
        rows = weight.transpose(1, 2).flatten(1).chunk(config.position_groups)
        biases = weights.take("bias").chunk(config.position_groups)
        products = [
            PackedLinear(row, bias, config.conv_activation) for row, bias in zip(rows, biases, strict=True)
        ]
        self.groups = nn.ModuleList(products)  # type: ignore[assignment]

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [n,T,D] -> [n,T,D]."""
        T, D = hidden.shape[1:]
        if has_fused_ops(hidden):
            gelu = self.activation == "gelu"
            weight, bias = self._whole()
            ends = {"padding": self.kernel // 2, "trim": 1 - self.kernel % 2}
            out = time_conv(hidden, weight, bias, kernel=self.kernel, gelu=gelu, **ends)
            return out if gelu else activate_(out, self.activation)
        width = D // len(self.groups)
        padded = F.pad(hidden, (0, 0, self.kernel // 2, self.kernel // 2))
        out = torch.empty_like(hidden)
        for channels, product, into in zip(
            padded.split(width, 2), self.groups, out.split(width, 2), strict=True
        ):
            views = channels.contiguous().unfold(1, self.kernel, 1)[:, :T].transpose(2, 3).flatten(2)
            into.copy_(product(views))
        return out

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of all groups, one after the other, the groups' own being views of them."""
        rows = [(group.plain(), cast(Tensor, group.bias)) for group in self.groups]
        (_, first), kept = rows[0], self._kept
        if kept is None or (kept[1].device, kept[1].dtype) != (first.device, first.dtype):
            kept = torch.cat([weight for weight, _ in rows]), torch.cat([bias for _, bias in rows])
            self._kept, bounds = kept, [t.chunk(len(self.groups)) for t in kept]
            for group, weight, bias in zip(self.groups, *bounds, strict=True):
                if group.weight is not None and group.bias is not None:
                    group.weight.data, group.bias.data = weight, bias
        return kept


def _block(config: AudioConfig, weights: TensorStore) -> Block:
    up = weights.linear("feed_forward.intermediate_dense", activation=config.activation)
    return Block(
        weights.norm("layer_norm", config.layer_norm_eps),
        self_attention(weights.under("attention."), config.heads),
        weights.norm("final_layer_norm", config.layer_norm_eps),
        MLP(up, weights.linear("feed_forward.output_dense")),
    )
