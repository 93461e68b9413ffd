"""Returns memory that is not read again to the operating system."""

import ctypes
import mmap
import sys

from torch import Tensor


def release_pages(tensor: Tensor) -> None:
    """Return the memory of a tensor that is not read again.

    A tensor of a bundle is a part of a mapped file. The mapping lives as long as any tensor of the file, and
    with it every page that was read, so that packed weights would count twice. An unread page costs nothing.
    Without effect except on a contiguous CPU tensor under Linux.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if tensor.device.type != "cpu" or advice is None or not sys.platform.startswith("linux"):
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first_page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last_page = end // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.is_contiguous() and first_page < last_page:
        size = ctypes.c_size_t(last_page - first_page)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first_page), size, advice)


def trim_heap() -> None:
    """Return what folding and packing left free in the C library's heap, where the library can do so."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
