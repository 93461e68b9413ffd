"""Files of tensors: what is in them, whether it is what it must be, and how they are written."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NAMES = FLOATS | {torch.int8: "I8", torch.uint8: "U8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A tensor in a file, without its values."""

    file: Path
    shape: Shape
    dtype: torch.dtype | None  # None for a format that no weight of ours has


def listing(*names: str) -> str:
    """The first names for a message, and how many more there are."""
    first = ", ".join(names[:4])
    return first if len(names) <= 4 else f"{first} and {len(names) - 4} more"


def index(files: list[Path]) -> dict[str, Entry]:
    """Tensor name -> entry, over all files. Raises CheckpointError for a damaged file and a repeated name."""
    entries: dict[str, Entry] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (not a dict)
                    if name in entries:
                        raise CheckpointError(f"{file}: {name} is also in {entries[name].file.name}")
                    tensor = reader.get_slice(name)
                    shape = tuple(tensor.get_shape())
                    entries[name] = Entry(file, shape, _DTYPES.get(tensor.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a safetensors file, or cut off ({error}); copy it again"
            ) from error
    return entries


def audit(present: Mapping[str, Shape], expected: Mapping[str, Shape], where: str, hint: str = "") -> None:
    """Raises CheckpointError that names every difference between two tables of name -> shape.

    Args:
        where: file or folder, which begins the message.
        hint: what to do, which ends the message.
    """
    missing = [name for name in expected if name not in present]
    unknown = [name for name in present if name not in expected]
    misshapen = [
        f"{name} is {list(present[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in present and present[name] != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "misshapen": misshapen}
    problems = [f"{kind}: {listing(*names)}" for kind, names in kinds.items() if names]
    if problems:
        suffix = f" ({hint})" if hint else ""
        raise CheckpointError(f"{where}: {'; '.join(problems)}{suffix}")


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: torch.dtype | Mapping[str, torch.dtype],
    produce: Callable[[str], Tensor],
) -> None:
    """Write a file of tensors, one of which is in memory at a time.

    Args:
        path: the file.
        shapes: name -> shape of every tensor.
        dtype: of all tensors, or of each by name.
        produce: name -> the tensor, on any device and in any dtype.
    """
    dtypes = {name: dtype if isinstance(dtype, torch.dtype) else dtype[name] for name in shapes}
    sizes = {name: dtypes[name].itemsize * torch.Size(shape).numel() for name, shape in shapes.items()}
    # Tensors of multiples of 64 bytes come first, so that all of these are aligned.
    order = sorted(shapes, key=lambda name: sizes[name] % 64 != 0)
    header = _header(order, shapes, dtypes, sizes)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in order:
            value = produce(name).detach().to("cpu", dtypes[name]).contiguous()
            assert tuple(value.shape) == tuple(shapes[name]), name
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _header(
    order: list[str],
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, torch.dtype],
    sizes: Mapping[str, int],
) -> bytes:
    """The JSON header of a safetensors file, padded so that the tensors begin at a multiple of 64 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        end = offset + sizes[name]
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    return text + b" " * (-(len(text) + 8) % 64)
