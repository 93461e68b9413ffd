"""Official tensors taken out of a filled reference model, so that there is never a second copy of all of them."""

import torch
from torch import Tensor, nn

from nanoemox_kernels.linear.quantized import BLOCK, Matrix, quantize_int8_rows

from ...bundle.official_names import targets
from ...config import NanoEmoXConfig
from .linear import PackedLinear, QuantizedLinear
from .memory import release_pages

Linear = PackedLinear | QuantizedLinear


class TensorStore:
    """The official tensors whose names begin with a prefix. A tensor is taken once; its reference module
    loses it.

    The fast parts are built from it: each takes its tensors and folds, packs or quantises them.
    """

    def __init__(
        self, model: nn.Module, parts: dict[str, tuple[str, ...]], prefix: str = "", quantize: bool = False
    ):
        """
        Args:
            model: the reference that holds the parameters.
            parts: official name -> names of the parameters that it consists of; shared by all views.
            prefix: put before every name that is asked for.
            quantize: whether `linear` makes int8 layers.
        """
        self._model, self._parts = model, parts
        self._prefix, self._quantize = prefix, quantize

    @classmethod
    def of(cls, model: nn.Module, config: NanoEmoXConfig, quantize: bool = False) -> "TensorStore":
        """All official tensors of a model."""
        parts = {target.name: target.parts for target in targets(model, config)}
        return cls(model, parts, quantize=quantize)

    def under(self, prefix: str) -> "TensorStore":
        """The same store, with a longer prefix."""
        return TensorStore(self._model, self._parts, self._prefix + prefix, self._quantize)

    def floating(self) -> "TensorStore":
        """The same store, whose `linear` makes no int8 layers."""
        return TensorStore(self._model, self._parts, self._prefix)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._parts

    def take(self, name: str) -> Tensor:
        """Take one official tensor in floating point. Raises KeyError for a name that is absent or taken."""
        tensor = self._take(name)
        assert isinstance(tensor, Tensor), name
        return tensor

    def _take(self, name: str) -> Tensor | Matrix:
        parts = [self._pop(key) for key in self._parts.pop(self._prefix + name)]
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def linear(self, *names: str, activation: str = "none") -> Linear:
        """A linear layer; several names are layers with the same input, joined as one."""
        weights = [self._take(f"{name}.weight") for name in names]
        biases = [self.take(f"{name}.bias") for name in names if f"{name}.bias" in self]
        weight: Tensor | Matrix = weights[0] if len(weights) == 1 else concatenate(weights)
        bias = None if not biases else biases[0] if len(biases) == 1 else torch.cat(biases)
        if self._quantize and not isinstance(weight, Matrix) and weight.shape[1] % BLOCK == 0:
            plain, weight = weight, quantize_int8_rows(weight)
            release_pages(plain)
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


def concatenate(parts: list[Tensor | Matrix]) -> Tensor | Matrix:
    """Rows of several tensors, or of matrices of one form, as one; the parts are let go."""
    data = [part.data if isinstance(part, Matrix) else part for part in parts]
    out = torch.cat(data)
    for tensor in data:
        release_pages(tensor)
    scales = [part.scales for part in parts if isinstance(part, Matrix) and part.scales is not None]
    return Matrix(out, torch.cat(scales)) if scales else out


def pack(weight: Tensor, bias: Tensor | None, activation: str = "none") -> PackedLinear:
    """A layer that holds the only copy of its weight."""
    layer = PackedLinear(weight, bias, activation)
    if layer.packed is not None:
        release_pages(weight)
    return layer
