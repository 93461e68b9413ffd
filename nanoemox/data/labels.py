"""Label archives of NumPy, which are pickles, read without running code (docs/data.md section 5)."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError

# Names in a pickled dictionary of text, numbers and arrays. NumPy's modules have two spellings, by version.
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
    """Refuses every name that is not in _ALLOWED."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return super().find_class(module, name)


def read_archive(path: Path) -> dict[str, dict[str, Any]]:
    """Read an .npz file whose arrays are zero-dimensional object arrays of one dictionary each.

    Returns:
        Array name -> its dictionary.

    Raises:
        DataError: the file is missing or damaged, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _read_entry(archive.read(name), name)
                for name in archive.namelist()
            }
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; this is where the labels of the data set belong") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: not an .npz archive, or damaged ({error})") from error
    except ValueError as error:  # of _read_entry, or of zipfile
        raise DataError(f"{path}: {error}") from error


def _read_entry(data: bytes, name: str) -> dict[str, Any]:
    """The dictionary of one array in .npy format. Raises DataError without the path."""
    stream = io.BytesIO(data)
    try:
        major, _ = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except ValueError as error:
        raise DataError(f"{name}: not a NumPy array ({error})") from error
    if shape != () or not dtype.hasobject:
        raise DataError(
            f"{name}: an array {list(shape)} of {dtype}; a zero-dimensional array of objects is expected"
        )
    try:
        value = _Unpickler(stream).load()
    except Exception as error:  # a damaged pickle raises any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not opened ({reason})") from error
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.tolist()
    if not isinstance(value, dict) or not _is_plain(value):
        raise DataError(f"{name}: must hold a dict of words, numbers and arrays")
    return value


def _is_plain(value: object) -> bool:
    """Whether a value consists of dictionaries, text, numbers and numeric arrays alone."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return isinstance(value, (str, int, float, np.number, np.str_))
