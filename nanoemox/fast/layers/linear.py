"""Linear layers followed by an activation, their weights in the order in which the device reads them."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoemox_kernels import gelu_, norm_act, settings, time_conv
from nanoemox_kernels.linear import cublas_lt
from nanoemox_kernels.linear.quantized import Matrix, quantized_linear

# Name in a configuration -> (oneDNN's post-operation, its algorithm).
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
    """Whether oneDNN multiplies matrices of this dtype on this device with packed weights."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def has_fused_ops(x: Tensor) -> bool:
    """Whether fused ops save passes over memory for x: on a GPU. A CPU is faster with oneDNN's products."""
    return x.device.type == "cuda"


def is_exact_gelu(activation: str) -> bool:
    """Whether an activation is GELU with erf, which the fused ops compute; the tanh form is another one."""
    return ACTIVATIONS[activation] == ("gelu", "none")


def activate_(x: Tensor, activation: str) -> Tensor:
    """Apply one of ACTIVATIONS to x, in place where PyTorch can; returns the result."""
    name, algorithm = ACTIVATIONS[activation]
    if name == "gelu":
        if is_exact_gelu(activation) and has_fused_ops(x):
            return gelu_(x)
        return torch.ops.aten.gelu_(x, approximate=algorithm)
    if name == "swish":
        return F.silu(x, inplace=True)
    if name == "relu":
        return x.relu_()
    return x


def layer_norm(x: Tensor, norm: nn.LayerNorm, activation: str = "none") -> Tensor:
    """activation(LayerNorm(x)); x [...,D], same shape and dtype returned."""
    if not has_fused_ops(x):
        return activate_(norm(x), activation)
    gelu = is_exact_gelu(activation)
    y = norm_act(x, norm.weight, norm.bias, eps=norm.eps, gelu=gelu)
    return y if gelu else activate_(y, activation)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias, by cuBLASLt within `limit_sms`.

    Args:
        x: [...,in].
        weight: [out,in] in PyTorch's order.
        bias: [out] or None.

    Returns:
        [...,out] in the dtype of x.
    """
    if cublas_lt.share() and not torch.is_grad_enabled() and cublas_lt.serves(x, weight, bias):
        return cublas_lt.linear(x, weight, bias)
    return F.linear(x, weight, bias)


class PackedLinear(nn.Module):
    """activation(x W^T + b). On a CPU with oneDNN, W is stored in oneDNN's order alone.

    F.linear would reorder W at every call. With packed weights products take 1.1 to 1.3 times less time in
    bf16 and 2.3 times less in fp32, and the activation needs no pass of its own.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str = "none"):
        """
        Args:
            weight: [out,in], fp32 or bf16.
            bias: [out] or None.
            activation: one of ACTIVATIONS.
        """
        super().__init__()
        self.out_features = weight.shape[0]
        self.activation = activation
        self.weight: nn.Parameter | None = None
        self.packed: Tensor | None = None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._set_weight(weight)

    def _set_weight(self, weight: Tensor) -> None:
        if multiplies_packed(weight.device, weight.dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            self.weight = None
        else:
            self.packed = None
            self.weight = nn.Parameter(weight, requires_grad=False)

    def plain_weight(self) -> Tensor:
        """The weight [out,in] in PyTorch's order: a copy where it is packed."""
        if self.weight is not None:
            return self.weight
        return cast(Tensor, self.packed).to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """x [...,in] -> [...,out]."""
        if self.packed is not None:
            name, algorithm = ACTIVATIONS[self.activation]
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], algorithm)
        weight = cast(Tensor, self.weight)
        if self._has_fused_gelu(x):
            # A convolution with one tap is a product, and time_conv applies GELU to it in the same kernel.
            return time_conv(x, weight, self.bias, kernel=1, gelu=True)
        return activate_(linear(x, weight, self.bias), self.activation)

    def _has_fused_gelu(self, x: Tensor) -> bool:
        if not has_fused_ops(x) or not is_exact_gelu(self.activation) or x.ndim != 3:
            return False
        return x.shape[2] <= settings("fused_linear_gelu", x.device)["inputs"]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Packs the weight again after `.to()`: the packed order belongs to a device and a dtype."""
        moved_weight = fn(self.plain_weight())
        self.weight = self.packed = None
        super()._apply(fn, recurse)
        self._set_weight(moved_weight)
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[f"{prefix}weight"] = self.plain_weight()


class QuantizedLinear(nn.Module):
    """activation(x W^T + b) with an int8 W, on a CPU.

    Rows of x are quantised at the call; sums and activation are fp32.
    """

    data: Tensor
    scales: Tensor

    def __init__(self, matrix: Matrix, bias: Tensor | None = None, activation: str = "none"):
        """
        Args:
            matrix: [out,in] in the format int8_rows.
            bias: [out] or None.
            activation: one of ACTIVATIONS.
        """
        super().__init__()
        self.activation = activation
        self.register_buffer("data", matrix.data)
        self.register_buffer("scales", matrix.scales)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [...,in] -> [...,out]."""
        name, algorithm = ACTIVATIONS[self.activation]
        if algorithm == "tanh":
            name = "gelu_tanh"
        elif name == "swish":
            name = "silu"
        return quantized_linear(x, Matrix(self.data, self.scales), self.bias, activation=name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """Moves the layer; scales stay fp32 whatever the dtype of the others."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.data.device.type != "cpu":
            raise ValueError("an int8 layer runs on the CPU alone: load the model again for another device")
        self.scales = scales
        return self
