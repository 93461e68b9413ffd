"""Linear layers with an activation behind them, their weights in the order in which the device reads them."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import gelu_, norm_act, settings, time_conv
from nanoemox_kernels.linear import cublas_lt
from nanoemox_kernels.linear.quantized import Matrix, quantized_linear

# Name in a configuration -> (oneDNN's epilogue, its algorithm).
ACTIVATIONS = {
    "none": ("none", ""),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}


def multiplies_packed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN serves products of this kind, with weights that it has put into its own order."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def has_fused_ops(x: Tensor) -> bool:
    """Whether x is served by ops that save passes over memory: on a GPU. A CPU is faster with oneDNN's products."""
    return x.device.type == "cuda"


def activate_(x: Tensor, activation: str) -> Tensor:
    """One of ACTIVATIONS, in place where PyTorch can; returns the result."""
    name, algorithm = ACTIVATIONS[activation]
    if name == "gelu":
        if algorithm == "none" and has_fused_ops(x):
            return gelu_(x)
        return torch.ops.aten.gelu_(x, approximate=algorithm)
    if name == "swish":
        return F.silu(x, inplace=True)
    return x.relu_() if name == "relu" else x


def normed(x: Tensor, norm: nn.LayerNorm, activation: str = "none") -> Tensor:
    """activation(LayerNorm(x)); x [...,D]."""
    if not has_fused_ops(x):
        return activate_(norm(x), activation)
    gelu = ACTIVATIONS[activation] == ("gelu", "none")
    y = norm_act(x, norm.weight, norm.bias, eps=norm.eps, gelu=gelu)
    return y if gelu else activate_(y, activation)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias with the weight in PyTorch's order, x [...,in]; within `limit_sms` by cuBLASLt."""
    if cublas_lt.share() and not torch.is_grad_enabled() and cublas_lt.serves(x, weight, bias):
        return cublas_lt.linear(x, weight, bias)
    return F.linear(x, weight, bias)


class PackedLinear(nn.Module):
    """activation(x W^T + b). On a CPU with oneDNN, W is held in oneDNN's order in place of the plain one.

    F.linear would reorder W at every call; packed once, products take 1.1 to 1.3 times less time in bf16 and
    2.3 times less in fp32, and the activation costs no pass of its own."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str = "none"):
        """weight [out,in], bias [out] or None; activation: one of ACTIVATIONS."""
        super().__init__()
        self.out_features = weight.shape[0]
        self.activation = activation
        self.weight: nn.Parameter | None = None
        self.packed: Tensor | None = None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._hold(weight)

    def _hold(self, weight: Tensor) -> None:
        packs = multiplies_packed(weight.device, weight.dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if packs else None
        self.weight = None if packs else nn.Parameter(weight, requires_grad=False)

    def plain(self) -> Tensor:
        """The weight [out,in] in PyTorch's order: a copy where it is packed."""
        return self.packed.to_dense() if self.weight is None else self.weight  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """x [...,in] -> [...,out]."""
        if self.packed is not None:
            name, algorithm = ACTIVATIONS[self.activation]
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], algorithm)
        weight = cast(Tensor, self.weight)
        if (
            has_fused_ops(x)
            and ACTIVATIONS[self.activation] == ("gelu", "none")
            and x.ndim == 3
            and x.shape[2] <= settings("fused_linear_gelu", x.device)["inputs"]
        ):
            return time_conv(
                x, weight, self.bias, kernel=1, gelu=True
            )  # one tap: a product with GELU behind it
        return activate_(product(x, weight, self.bias), self.activation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """`.to()` and its kin: the packed order belongs to a device and a dtype."""
        moved = fn(self.plain())
        self.weight = self.packed = None
        super()._apply(fn, recurse)
        self._hold(moved)
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[f"{prefix}weight"] = self.plain()


class QuantizedLinear(nn.Module):
    """The same on an int8 matrix: rows are quantised as they come, sums and activation are fp32. CPU only."""

    data: Tensor
    scales: Tensor

    def __init__(self, matrix: Matrix, bias: Tensor | None = None, activation: str = "none"):
        super().__init__()
        self.activation = activation
        self.register_buffer("data", matrix.data)
        self.register_buffer("scales", matrix.scales)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [...,in] -> [...,out]."""
        name, algorithm = ACTIVATIONS[self.activation]
        name = {"swish": "silu"}.get(name, "gelu_tanh" if algorithm == "tanh" else name)
        return quantized_linear(x, Matrix(self.data, self.scales), self.bias, activation=name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Scales stay fp32 whatever the dtype of the rest."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.data.device.type != "cpu":
            raise ValueError("an int8 layer runs on the CPU alone: load the model again for another device")
        self.scales = scales
        return self
