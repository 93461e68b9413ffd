"""Gives memory back that nobody reads again."""

import ctypes
import mmap
import sys

from torch import Tensor


def release_pages(tensor: Tensor) -> None:
    """Give back the memory of a tensor that nobody reads again.

    A tensor of a bundle is a piece of a mapped file. The mapping lives as long as any tensor of the file
    does, and with it every page that was ever read, so that packed weights would count twice; an unread page
    costs nothing."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if tensor.device.type != "cpu" or advice is None or not sys.platform.startswith("linux"):
        return
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    low, high = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.is_contiguous() and low < high:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), advice)


def trim_heap() -> None:
    """Return what folding and packing have left free in the C library's heap, where it can be told to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
