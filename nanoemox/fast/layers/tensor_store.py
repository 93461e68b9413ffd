"""Official tensors out of a filled reference model: each is handed over once and held by nobody else afterwards."""

import torch
from torch import Tensor, nn

from nanoemox_kernels.linear.quantized import BLOCK, Matrix, quantize_int8_rows

from ...bundle.official_names import targets
from ...config import NanoEmoXConfig
from .linear import PackedLinear, QuantizedLinear
from .memory import let_go

Linear = PackedLinear | QuantizedLinear


class Weights:
    """The official tensors whose names begin with `prefix`. What is taken leaves the reference module hollow."""

    def __init__(self, model: nn.Module, config: NanoEmoXConfig, quantize: bool = False):
        """quantize: whether `linear` gives int8 layers."""
        self._model, self._quantize = model, quantize
        self._parts = {target.name: target.parts for target in targets(model, config)}
        self._prefix = ""

    def under(self, prefix: str) -> "Weights":
        """The same store, seen from a longer prefix."""
        view = object.__new__(Weights)
        view._model, view._parts, view._prefix = self._model, self._parts, self._prefix + prefix
        view._quantize = self._quantize
        return view

    def floating(self) -> "Weights":
        """The same store, of which `linear` gives no int8 layers."""
        view = self.under("")
        view._quantize = False
        return view

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._parts

    def take(self, name: str) -> Tensor:
        """One official tensor in floating point. Raises KeyError for a name that is not there, or no more."""
        found = self._take(name)
        assert isinstance(found, Tensor), name
        return found

    def _take(self, name: str) -> Tensor | Matrix:
        parts = [self._pop(key) for key in self._parts.pop(self._prefix + name)]
        return parts[0] if len(parts) == 1 else joined(parts)

    def linear(self, *names: str, activation: str = "none") -> Linear:
        """A layer of the transformers, or several that read the same as one."""
        weights = [self._take(f"{name}.weight") for name in names]
        biases = [self.take(f"{name}.bias") for name in names if f"{name}.bias" in self]
        weight: Tensor | Matrix = weights[0] if len(weights) == 1 else joined(weights)
        bias = None if not biases else biases[0] if len(biases) == 1 else torch.cat(biases)
        if self._quantize and not isinstance(weight, Matrix) and weight.shape[1] % BLOCK == 0:
            plain, weight = weight, quantize_int8_rows(weight)
            let_go(plain)
        if isinstance(weight, Matrix):
            return QuantizedLinear(weight, bias, activation)
        return pack(weight, bias, activation)

    def norm(self, name: str, eps: float = 1e-5) -> nn.LayerNorm:
        norm = nn.LayerNorm(0, eps)
        norm.weight, norm.bias = (
            nn.Parameter(self.take(f"{name}.{leaf}"), requires_grad=False) for leaf in ("weight", "bias")
        )
        norm.normalized_shape = tuple(norm.weight.shape)
        return norm

    def _pop(self, key: str) -> Tensor | Matrix:
        parent, _, leaf = key.rpartition(".")
        module = self._model.get_submodule(parent)
        tensor, scales = module._parameters.pop(leaf), getattr(module, "scales", None)
        assert tensor is not None, key
        return Matrix(tensor.detach(), scales) if leaf == "weight" and scales is not None else tensor.detach()


class Buffers(nn.Module):
    """The tensors of a named tuple, so that they move with their module; `buffers()` gives them in order."""

    def __init__(self, tensors: tuple[Tensor, ...]):
        super().__init__()
        for name, tensor in tensors._asdict().items():  # type: ignore[attr-defined]
            self.register_buffer(name, tensor)


def joined(parts: list[Tensor | Matrix]) -> Tensor | Matrix:
    """Rows of several tensors, or of matrices of one form, as one; the parts are let go."""
    data = [part.data if isinstance(part, Matrix) else part for part in parts]
    out = torch.cat(data)
    for tensor in data:
        let_go(tensor)
    scales = [part.scales for part in parts if isinstance(part, Matrix) and part.scales is not None]
    return Matrix(out, torch.cat(scales)) if scales else out


def pack(weight: Tensor, bias: Tensor | None, activation: str = "none") -> PackedLinear:
    """A layer that holds the only copy of its weight."""
    layer = PackedLinear(weight, bias, activation)
    if layer.packed is not None:
        let_go(weight)
    return layer
