"""Takes official tensors out of a filled reference model, so that memory never holds all of them twice."""

import torch
from torch import Tensor, nn

from nanoemox_kernels.linear.quantized import BLOCK, Matrix, quantize_int8_rows

from ...bundle.official_names import targets
from ...config import NanoEmoXConfig
from .linear import PackedLinear, QuantizedLinear
from .memory import release_pages

Linear = PackedLinear | QuantizedLinear


class TensorStore:
    """The official tensors of a model whose names begin with a prefix.

    A tensor is taken once, and its reference module is left without it. The fast parts are built from a
    store: each takes its tensors and folds, packs or quantises them.
    """

    def __init__(
        self, model: nn.Module, parts: dict[str, tuple[str, ...]], prefix: str = "", quantize: bool = False
    ):
        """
        Args:
            model: the reference that holds the parameters.
            parts: official name -> names of the parameters that it consists of; shared by all views.
            prefix: put before every name that is requested.
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
        """Whether an official tensor of this name exists and is not taken yet."""
        return self._prefix + name in self._parts

    def take(self, name: str) -> Tensor:
        """Take one official tensor in floating point. Raises KeyError for a name that is absent or taken."""
        tensor = self._take(name)
        assert isinstance(tensor, Tensor), name
        return tensor

    def _take(self, name: str) -> Tensor | Matrix:
        keys = self._parts.pop(self._prefix + name)
        return concatenate([self._pop(key) for key in keys])

    def linear(self, *names: str, activation: str = "none") -> Linear:
        """Take a linear layer.

        Args:
            names: layers with the same input, which become one; their tensors are NAME.weight and NAME.bias.
            activation: applied to the result, one of `linear.ACTIVATIONS`.

        Returns:
            A packed layer, or an int8 one where the store quantises or the model holds the weight in int8.
        """
        weight = concatenate([self._take(f"{name}.weight") for name in names])
        biases = [self.take(f"{name}.bias") for name in names if f"{name}.bias" in self]
        bias = torch.cat(biases) if len(biases) > 1 else next(iter(biases), None)
        if isinstance(weight, Tensor) and self._quantize and weight.shape[1] % BLOCK == 0:
            matrix = quantize_int8_rows(weight)
            release_pages(weight)
            return QuantizedLinear(matrix, bias, activation)
        if isinstance(weight, Matrix):
            return QuantizedLinear(weight, bias, activation)
        return pack(weight, bias, activation)

    def norm(self, name: str, eps: float = 1e-5) -> nn.LayerNorm:
        """Take a layer norm: NAME.weight and NAME.bias."""
        norm = nn.LayerNorm(0, eps)
        norm.weight, norm.bias = (
            nn.Parameter(self.take(f"{name}.{leaf}"), requires_grad=False) for leaf in ("weight", "bias")
        )
        norm.normalized_shape = tuple(norm.weight.shape)
        return norm

    def _pop(self, key: str) -> Tensor | Matrix:
        parent, _, leaf = key.rpartition(".")
        module = self._model.get_submodule(parent)
        parameter = module._parameters.pop(leaf)
        assert parameter is not None, key
        scales = getattr(module, "scales", None)
        if leaf == "weight" and scales is not None:
            return Matrix(parameter.detach(), scales)
        return parameter.detach()


class Buffers(nn.Module):
    """The tensors of a named tuple as buffers, which move with their module; `buffers()` keeps the order."""

    def __init__(self, tensors: tuple[Tensor, ...]):
        super().__init__()
        for name, tensor in tensors._asdict().items():  # type: ignore[attr-defined]
            self.register_buffer(name, tensor)


def concatenate(parts: list[Tensor | Matrix]) -> Tensor | Matrix:
    """Concatenate the rows of tensors, or of matrices of one format, and release the parts' memory.

    A single part is returned as it is.
    """
    if len(parts) == 1:
        return parts[0]
    data = [part.data if isinstance(part, Matrix) else part for part in parts]
    rows = torch.cat(data)
    for tensor in data:
        release_pages(tensor)
    scales = [part.scales for part in parts if isinstance(part, Matrix) and part.scales is not None]
    return Matrix(rows, torch.cat(scales)) if scales else rows


def pack(weight: Tensor, bias: Tensor | None, activation: str = "none") -> PackedLinear:
    """A linear layer on weight [out,in] and bias [out]; a weight that is packed is released."""
    layer = PackedLinear(weight, bias, activation)
    if layer.packed is not None:
        release_pages(weight)
    return layer
