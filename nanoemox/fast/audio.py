"""HuBERT up to the last hidden state that is read; time means are added up as the layers finish.

Source: docs/architecture.md sections 3 and 22.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import Tap, conv_norm_act, time_conv

from ..config import AudioConfig
from .cuda_graphs import Replayed, replayed
from .layers.attention import cache_chunks
from .layers.linear import PackedLinear, activate_, has_fused_ops, is_exact_gelu, layer_norm
from .layers.tensor_store import TensorStore, pack
from .layers.transformer import MLP, Block, run_post_norm, run_pre_norm, self_attention


class FastAudio(Replayed):
    """AudioEncoder on the official tensors under `acoustic_encoder.model.`."""

    blocks: Sequence[Block]

    def __init__(self, config: AudioConfig, weights: TensorStore):
        super().__init__()
        self.config = config
        eps = config.layer_norm_eps
        extractor = weights.under("feature_extractor.conv_layers.")
        self.convolutions = nn.ModuleList(
            _Convolution(config, extractor, layer) for layer in range(len(config.conv_dim))
        )
        projection = weights.under("feature_projection.")
        self.norm = projection.norm("layer_norm", eps) if config.projection_layer_norm else None
        self.projection = projection.linear("projection")
        encoder = weights.under("encoder.")
        self.position = _PositionalConvolution(config, encoder.under("pos_conv_embed.conv."))
        last = max(*config.taps, *config.feature_layers)
        blocks = [_block(config, encoder.under(f"layers.{number}.")) for number in range(last)]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        # In a post-norm encoder this norm comes first, in a pre-norm one behind the last layer.
        needs_norm = not config.stable_layer_norm or last == config.layers
        self.encoder_norm = encoder.norm("layer_norm", eps) if needs_norm else None

    def preprocess(self, windows: Tensor) -> Tensor:
        """windows [B,T,S] -> zero mean and unit variance over each sample's windows together, fp32."""
        windows = windows.float()
        if not self.config.normalize:
            return windows
        over = (1, 2) if self.config.statistics == "sample" else (0, 1, 2)
        variance, mean = torch.var_mean(windows, over, correction=0, keepdim=True)
        return (windows - mean).mul_(torch.rsqrt(variance.add_(1e-7)))

    def extract_features(self, waves: Tensor) -> Tensor:
        """waves [n,S], normalised -> hidden rows before the positional convolution [n,T,D]."""
        x = waves[..., None]
        for convolution in self.convolutions:
            x = convolution(x)
        if self.norm is not None:
            x = layer_norm(x, self.norm)
        return self.projection(x)

    def _encode_chunk(self, hidden: Tensor, out: Tensor) -> None:
        """Run the layers on hidden [n,T,D], overwritten; add time means to out [n,(L+1)*D], taps first."""
        config = self.config
        *tap_slices, feature_slice = out.split(hidden.shape[2], 1)
        reads = [(number, 1.0, target) for number, target in zip(config.taps, tap_slices, strict=True)]
        share = 1 / len(config.feature_layers)
        reads += [(number, share, feature_slice) for number in config.feature_layers]

        def taps(number: int) -> list[Tap]:
            # The last hidden state is the output of the final norm; post-norm, every one is a norm's output.
            is_residual = config.stable_layer_norm and number < config.layers
            source = "residual" if is_residual else "norm"
            return [Tap(target, weight, source, "mean") for read, weight, target in reads if read == number]

        run = run_pre_norm if config.stable_layer_norm else run_post_norm
        run(hidden, self.position(hidden), self.blocks, self.encoder_norm, taps)

    @replayed
    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """windows [B,T,S], 16 kHz -> features [B,T,D], taps [B,T,L*D], in the dtype of the weights."""
        if windows.ndim != 3:
            raise ValueError(f"want windows [B, T, samples], got {list(windows.shape)}")
        config, dtype = self.config, next(self.parameters()).dtype
        waves = self.preprocess(windows).flatten(0, 1).to(dtype)
        first_layer_size = waves.shape[1] // config.conv_stride[0] * config.conv_dim[0]
        wave_chunks = cache_chunks(waves, 2 * first_layer_size * dtype.itemsize)
        hidden_chunks = [self.extract_features(chunk) for chunk in wave_chunks]
        hidden = torch.cat(hidden_chunks) if len(hidden_chunks) > 1 else hidden_chunks[0]
        N, T, D = hidden.shape
        sums = torch.zeros(N, (len(config.taps) + 1) * D, device=hidden.device)
        chunks = cache_chunks(hidden, T * config.mlp_size * dtype.itemsize)
        for chunk, out in zip(chunks, sums.split(len(chunks[0])), strict=True):
            self._encode_chunk(chunk, out)
        means = sums.to(dtype).unflatten(0, windows.shape[:2])
        return means[..., -D:], means[..., :-D]


class _Convolution(nn.Module):
    """A layer of the front end, channels last: a product over windows of the signal, norm, activation."""

    def __init__(self, config: AudioConfig, weights: TensorStore, layer: int):
        super().__init__()
        self.kernel, self.stride = config.conv_kernel[layer], config.conv_stride[layer]
        layer_weights = weights.under(f"{layer}.")
        has_norm = config.conv_norm == "layer" or layer == 0
        self.activation = config.conv_activation if has_norm else "none"  # behind the norm
        bias = layer_weights.take("conv.bias") if config.conv_bias else None
        weight = layer_weights.take("conv.weight").transpose(1, 2).flatten(1)  # [out,kernel*in]
        self.product = pack(weight, bias, "none" if has_norm else config.conv_activation)
        self.norm = layer_weights.norm("layer_norm") if has_norm else None
        self.normalizes_time = config.conv_norm == "group"  # each channel over time, not each row

    def forward(self, x: Tensor) -> Tensor:
        """x [n,T,in] -> [n,T',out]."""
        if has_fused_ops(x) and x.shape[2] == 1 and self.norm is not None and not self.normalizes_time:
            return self._first_layer(x[..., 0], self.norm)
        x = self._convolve(x)
        if self.norm is None:
            return x
        if not self.normalizes_time:
            return layer_norm(x, self.norm, self.activation)
        x = F.group_norm(x.transpose(1, 2), x.shape[2], self.norm.weight, self.norm.bias, self.norm.eps)
        return activate_(x.transpose(1, 2).contiguous(), self.activation)

    def _convolve(self, x: Tensor) -> Tensor:
        """x [n,T,in] -> [n,T',out]: the convolution with the activation of `product`."""
        if not has_fused_ops(x) or x.shape[2] == 1:
            windows = x.unfold(1, self.kernel, self.stride).transpose(2, 3).flatten(2)
            return self.product(windows)
        gelu = is_exact_gelu(self.product.activation)
        weight = self.product.plain_weight()
        x = time_conv(x, weight, self.product.bias, kernel=self.kernel, stride=self.stride, gelu=gelu)
        return x if gelu else activate_(x, self.product.activation)

    def _first_layer(self, waves: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Convolution, norm and activation in one op: waves [n,S] -> [n,T,out]."""
        gelu = is_exact_gelu(self.activation)
        x = conv_norm_act(
            waves,
            self.product.plain_weight(),
            self.product.bias,
            norm.weight,
            norm.bias,
            stride=self.stride,
            eps=norm.eps,
            gelu=gelu,
        )
        return x if gelu else activate_(x, self.activation)


class _PositionalConvolution(nn.Module):
    """The grouped convolution over time that encodes positions: one product a group.

    Weight norm is multiplied out at load.
    """

    groups: Sequence[PackedLinear]

    def __init__(self, config: AudioConfig, weights: TensorStore):
        super().__init__()
        self.kernel, self.activation = config.position_kernel, config.conv_activation
        self._joined: tuple[Tensor, Tensor] | None = None
        gain, direction = (weights.take(f"parametrizations.weight.original{part}") for part in (0, 1))
        weight = torch._weight_norm(direction.float(), gain.float(), 2).to(direction.dtype)
        group_weights = weight.transpose(1, 2).flatten(1).chunk(config.position_groups)
        group_biases = weights.take("bias").chunk(config.position_groups)
        groups = [
            PackedLinear(group_weight, group_bias, config.conv_activation)
            for group_weight, group_bias in zip(group_weights, group_biases, strict=True)
        ]
        self.groups = nn.ModuleList(groups)  # type: ignore[assignment]

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [n,T,D] -> [n,T,D]."""
        if has_fused_ops(hidden):
            return self._fused(hidden)
        T, D = hidden.shape[1:]
        width = D // len(self.groups)
        padded = F.pad(hidden, (0, 0, self.kernel // 2, self.kernel // 2))
        out = torch.empty_like(hidden)
        pairs = zip(padded.split(width, 2), out.split(width, 2), strict=True)
        for group, (channels, target) in zip(self.groups, pairs, strict=True):
            windows = channels.contiguous().unfold(1, self.kernel, 1)[:, :T].transpose(2, 3).flatten(2)
            target.copy_(group(windows))
        return out

    def _fused(self, hidden: Tensor) -> Tensor:
        gelu = is_exact_gelu(self.activation)
        weight, bias = self._joined_weights()
        padding, trim = self.kernel // 2, 1 - self.kernel % 2
        out = time_conv(hidden, weight, bias, kernel=self.kernel, gelu=gelu, padding=padding, trim=trim)
        return out if gelu else activate_(out, self.activation)

    def _joined_weights(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of all groups, one after the other.

        The groups' own become views of them, so that there is one copy.
        """
        weights = [group.plain_weight() for group in self.groups]
        biases = [cast(Tensor, group.bias) for group in self.groups]
        joined = self._joined
        if joined is not None and (joined[1].device, joined[1].dtype) == (biases[0].device, biases[0].dtype):
            return joined
        joined = torch.cat(weights), torch.cat(biases)
        self._joined = joined
        weight_views, bias_views = (tensor.chunk(len(self.groups)) for tensor in joined)
        for group, weight, bias in zip(self.groups, weight_views, bias_views, strict=True):
            if group.weight is not None and group.bias is not None:
                group.weight.data, group.bias.data = weight, bias
        return joined


def _block(config: AudioConfig, weights: TensorStore) -> Block:
    up = weights.linear("feed_forward.intermediate_dense", activation=config.activation)
    return Block(
        weights.norm("layer_norm", config.layer_norm_eps),
        self_attention(weights.under("attention."), config.heads),
        weights.norm("final_layer_norm", config.layer_norm_eps),
        MLP(up, weights.linear("feed_forward.output_dense")),
    )
