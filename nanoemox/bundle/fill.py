"""Fills the parameters of a model from the files of a bundle (docs/architecture.md section 15)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..config import NanoEmoXConfig
from ..errors import CheckpointError
from .official_names import shapes, targets
from .quantized import SCALES, Part, layout
from .tensors import FLOATS, Entry, audit, index, listing

_BLOCK = 64 << 20  # bytes that are converted at a time, where a tensor is larger
_MAPPED = 128 << 20  # bytes that are read through one mapping before it is dropped


def fill(
    model: nn.Module, config: NanoEmoXConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter its value from the folder's safetensors, one tensor at a time.

    Values that need neither a cast nor a copy stay mapped. The others pass through mappings that are soon
    dropped, so that the peak of memory is the weights in `dtype` and little more.

    Raises CheckpointError for missing, unknown or misshapen tensors, by name.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder}: no *.safetensors in it; `nanoemox convert` makes a bundle of other checkpoints"
        )
    entries = index(files)
    parts = layout(shapes(model, config), config.quantize)
    present = {name: entry.shape for name, entry in entries.items()}
    expected = {name: part.shape for name, part in parts.items()}
    hint = ""
    if config.quantize != "none":
        hint = f"an {config.quantize} bundle of another version is made again from its weights"
    audit(present, expected, str(folder), hint)
    wrong_dtype = [name for name, entry in entries.items() if not _fits(entry, parts[name])]
    if wrong_dtype:
        raise CheckpointError(f"{folder}: not float32, float16 or bfloat16: {listing(*wrong_dtype)}")
    parameters = {target.name: target.parts for target in targets(model, config)}
    read_into(model, parameters, entries, device, dtype)


def _fits(entry: Entry, part: Part) -> bool:
    return entry.dtype in FLOATS if part.dtype is None else entry.dtype == part.dtype


def read_into(
    model: nn.Module,
    parameters: Mapping[str, Sequence[str]],
    entries: Mapping[str, Entry],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give parameters their values.

    Args:
        parameters: name in the files -> the parameters that take equal shares of its rows.
        entries: name in the files -> where it is.
        device, dtype: of the parameters; quantised values keep their dtype.
    """
    names_by_file: dict[Path, list[str]] = {}
    for name in parameters:
        names_by_file.setdefault(entries[name].file, []).append(name)
    for file, names in names_by_file.items():
        reader = _Reader(file)
        for name in names:
            keys, scales_entry = parameters[name], entries.get(name + SCALES)
            value = reader.read(name, entries[name], device, dtype, quantised=scales_entry is not None)
            values = value.chunk(len(keys)) if value.ndim else (value,)
            scales: Sequence[Tensor | None] = [None] * len(keys)
            if scales_entry is not None:
                with safe_open(scales_entry.file, "pt") as scales_file:
                    scales = scales_file.get_tensor(name + SCALES).chunk(len(keys))
            for key, part, part_scales in zip(keys, values, scales, strict=True):
                _assign(model, key, part, part_scales)


class _Reader:
    """Reads tensors of one file through a mapping, which is renewed when much was read, to free its pages."""

    def __init__(self, file: Path):
        self.file = file
        self.mapping = safe_open(file, "pt")
        self.bytes_read = 0

    def read(
        self, name: str, entry: Entry, device: torch.device, dtype: torch.dtype, *, quantised: bool
    ) -> Tensor:
        if device.type == "cpu" and (entry.dtype == dtype or quantised):
            return self.mapping.get_tensor(name)  # stays mapped
        if self.bytes_read > _MAPPED:
            self.mapping = safe_open(self.file, "pt")
            self.bytes_read = 0
        value = torch.empty(entry.shape, dtype=dtype, device=device)
        self._copy(name, value)
        self.bytes_read += value.nbytes
        return value

    def _copy(self, name: str, value: Tensor) -> None:
        """Fills `value`, in blocks of rows where it is large: a slice is copied out of the mapping."""
        if value.ndim == 0 or value.nbytes <= _BLOCK:
            value.copy_(self.mapping.get_tensor(name))
            return
        source = self.mapping.get_slice(name)
        rows = max(1, _BLOCK // max(1, value[:1].nbytes))
        for low in range(0, value.shape[0], rows):
            value[low : low + rows].copy_(source[low : low + rows])


def _assign(model: nn.Module, key: str, value: Tensor, scales: Tensor | None) -> None:
    parent, _, leaf = key.rpartition(".")
    module: Any = model.get_submodule(parent)
    module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    if scales is not None:
        module.scales = scales
