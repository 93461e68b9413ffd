"""A bundle: config.json, *.safetensors under the official names, tokenizer files, model card, maybe templates.json."""

import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import NanoEmoXConfig
from ..errors import CheckpointError
from .official_names import shapes, targets
from .quantized import SCALES, Part, layout

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_INTEGERS = {torch.int8: "I8", torch.uint8: "U8"}
_DTYPE_OF = {name: dtype for dtype, name in (_DTYPES | _INTEGERS).items()}
_BLOCK = 64 << 20  # bytes converted at a time, where a tensor is larger
_MAPPED = 128 << 20  # bytes read through one mapping before it is dropped


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, without its values."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None for formats that hold no weight of ours


def listing(*names: str) -> str:
    """A few names for a message, and how many more there are."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def index(files: list[Path]) -> dict[str, Entry]:
    """name -> entry over all files. Raises CheckpointError for a file that is none or a name that occurs twice."""
    found: dict[str, Entry] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as f:
                for name in f.keys():  # noqa: SIM118 (not a dict)
                    if name in found:
                        raise CheckpointError(f"{file}: {name} is also in {found[name].file.name}")
                    part = f.get_slice(name)
                    found[name] = Entry(file, tuple(part.get_shape()), _DTYPE_OF.get(part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a safetensors file, or cut off ({error}); copy it again"
            ) from error
    return found


def audit(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], where: str, way_out: str = ""
) -> None:
    """Raises CheckpointError naming every kind of difference between what is there and what must be."""
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    parts = [("missing", missing), ("unknown", unknown), ("misshapen", misshapen)]
    if problems := [f"{kind}: {listing(*names)}" for kind, names in parts if names]:
        raise CheckpointError(f"{where}: {'; '.join(problems)}{way_out and f' ({way_out})'}")


def _assign(model: nn.Module, key: str, value: Tensor, scales: Tensor | None) -> None:
    parent, _, leaf = key.rpartition(".")
    module: Any = model.get_submodule(parent)
    module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    if scales is not None:
        module.scales = scales


def fill(
    model: nn.Module, config: NanoEmoXConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter its value from the folder's safetensors, one tensor at a time.

    Values that need neither a cast nor a copy stay mapped; the others pass through mappings that are soon dropped, so
    that the peak is the weights in `dtype` and little more.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder}: no *.safetensors in it; `nanoemox convert` makes a bundle of other checkpoints"
        )
    entries = index(files)
    wanted = layout(shapes(model, config), config.quantize)
    form = config.quantize
    way_out = "" if form == "none" else f"an {form} bundle of another version is made again from its weights"
    found = {name: entry.shape for name, entry in entries.items()}
    audit(found, {name: part.shape for name, part in wanted.items()}, str(folder), way_out)
    if bad := [name for name, entry in entries.items() if not _fits(entry, wanted[name])]:
        raise CheckpointError(f"{folder}: not float32, float16 or bfloat16: {listing(*bad)}")
    read_into(model, {target.name: target.parts for target in targets(model, config)}, entries, device, dtype)


def read_into(
    model: nn.Module,
    parts: dict[str, tuple[str, ...]],
    entries: dict[str, Entry],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give parameters their values: of each name of the files, its parameters take equal shares of the rows."""
    by_file: dict[Path, list[str]] = {}
    for name in parts:
        by_file.setdefault(entries[name].file, []).append(name)
    for file, names in by_file.items():
        reader, read = safe_open(file, "pt"), 0
        for name in names:
            entry, scales, keys = entries[name], entries.get(name + SCALES), parts[name]
            if device.type == "cpu" and (entry.dtype == dtype or scales is not None):
                value = reader.get_tensor(name)
            else:
                if read > _MAPPED:
                    reader, read = safe_open(file, "pt"), 0
                value = torch.empty(entry.shape, dtype=dtype, device=device)
                read += _copy(reader, name, value)
            beside: Sequence[Tensor | None] = [None] * len(keys)
            if scales is not None:
                with safe_open(scales.file, "pt") as other:
                    beside = other.get_tensor(name + SCALES).chunk(len(keys))
            values = value.chunk(len(keys)) if value.ndim else (value,)
            for key, part, scale in zip(keys, values, beside, strict=True):
                _assign(model, key, part, scale)


def _fits(entry: Entry, part: Part) -> bool:
    return entry.dtype in _DTYPES if part.dtype is None else entry.dtype == part.dtype


def _copy(reader: safe_open, name: str, value: Tensor) -> int:
    """Fill `value`, at once or in blocks of rows (a slice is copied out of the mapping); returns the bytes written."""
    if value.ndim == 0 or value.nbytes <= _BLOCK:
        value.copy_(reader.get_tensor(name))
        return value.nbytes
    part = reader.get_slice(name)
    rows = max(1, _BLOCK // max(1, value[:1].nbytes))
    for low in range(0, value.shape[0], rows):
        value[low : low + rows].copy_(part[low : low + rows])
    return value.nbytes


def write_safetensors(
    path: Path,
    wanted: dict[str, tuple[int, ...]],
    dtype: torch.dtype | dict[str, torch.dtype],
    produce: Callable[[str], Tensor],
) -> None:
    """Stream tensors to a file; one is in memory at a time. Names whose size is no multiple of 64 bytes come last."""
    kinds = dtype if isinstance(dtype, dict) else dict.fromkeys(wanted, dtype)
    size = {name: kinds[name].itemsize * torch.Size(shape).numel() for name, shape in wanted.items()}
    order = sorted(wanted, key=lambda name: size[name] % 64 != 0)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        header[name] = {
            "dtype": (_DTYPES | _INTEGERS)[kinds[name]], "shape": list(wanted[name]),
            "data_offsets": [offset, offset + size[name]],
        }  # fmt: skip
        offset += size[name]
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            value = produce(name).detach().to("cpu", kinds[name]).contiguous()
            assert tuple(value.shape) == tuple(wanted[name]), name
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
