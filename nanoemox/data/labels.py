"""NumPy archives of dicts of labels, which are pickles, read without running anything (tasks.md 5.5)."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

# All that a pickled dict of words, numbers and arrays names; NumPy's modules are called either way by its versions.
_ALLOWED = {
    (module.format(core), name)
    for core in ("core", "_core")
    for module, name in (
        ("numpy.{}.multiarray", "scalar"),
        ("numpy.{}.multiarray", "_reconstruct"),
        ("numpy.{}.numeric", "_frombuffer"),
    )
} | {("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode")}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return super().find_class(module, name)


def read_archive(path: Path) -> dict[str, dict[str, Any]]:
    """Array name -> dict of an .npz of zero-dimensional object arrays. Raises ValueError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                entry.removesuffix(".npy"): _read(archive.read(entry), entry) for entry in archive.namelist()
            }  # fmt: skip
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; this is where the labels of the data set belong") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: not an .npz archive, or damaged ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(data: bytes, entry: str) -> dict[str, Any]:
    stream = io.BytesIO(data)
    try:
        major, _ = npy.read_magic(stream)
        shape, _, dtype = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(stream)
    except ValueError as error:
        raise ValueError(f"{entry}: not a NumPy array ({error})") from error
    if shape != () or not dtype.hasobject:
        raise ValueError(
            f"{entry}: an array {list(shape)} of {dtype}; a zero-dimensional array of objects is expected"
        )
    try:
        held = _Unpickler(stream).load()
    except Exception as error:  # a damaged pickle raises any kind
        raise ValueError(
            f"{entry}: not opened ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
    value = held.tolist() if isinstance(held, np.ndarray) and held.shape == () else held
    if not _plain(value) or not isinstance(value, dict):
        raise ValueError(f"{entry}: must hold a dict of words, numbers and arrays")
    return value


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return isinstance(value, (str, int, float, np.number, np.str_)) or (
        isinstance(value, np.ndarray) and not value.dtype.hasobject
    )
