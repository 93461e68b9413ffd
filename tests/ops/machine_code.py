"""Runs a Triton kernel's machine code for another GPU: its PTX, which newer GPUs take too, through the CUDA
driver.
"""

import ctypes
import re
from contextlib import contextmanager

import torch

from nanoemox_kernels.aot import specialise

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER and its size


def compile_for(kernel, arguments, capability):
    """The kernel as a launch with these arguments specialises it, compiled for another compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget

    source, options = specialise(kernel, arguments)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options), source


def entry_widths(ptx):
    """Bytes of each parameter of the only entry."""
    (parameters,) = re.findall(r"\.entry\s+\w+\s*\(([^)]*)\)", ptx)
    widths = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.[bfsu](\d+)", parameters)
    assert len(widths) == parameters.count(".param"), parameters
    return [int(bits) // 8 for bits in widths]


def pack(widths, values):
    """C values for an entry: those of the launch, then null for the pointers to scratch memory that Triton
    adds.
    """
    added = len(widths) - len(values)
    assert 0 <= added <= 2 and widths[len(values) :] == [8] * added, (widths, values)
    cells = []
    for width, value in zip(widths, [*values, *[0] * added], strict=True):
        if isinstance(value, torch.Tensor):
            cell = ctypes.c_uint64(value.data_ptr())
        elif isinstance(value, float):
            cell = ctypes.c_float(value)
        else:
            cell = {4: ctypes.c_int32, 8: ctypes.c_int64}[width](value)
        assert ctypes.sizeof(cell) == width, (width, value)
        cells.append(cell)
    return cells


def run_for(kernel, grid, arguments, capability):
    """Launch the machine code of `capability` on the current stream and wait; `arguments`: a launch's, by
    name.
    """
    compiled, source = compile_for(kernel, arguments, capability)
    assert not compiled.metadata.global_scratch_size, "it wants scratch memory"
    values = [arguments[name] for name, kind in source.signature.items() if kind != "constexpr"]
    cells = pack(entry_widths(compiled.asm["ptx"]), values)
    pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
    shared, threads = compiled.metadata.shared, 32 * compiled.metadata.num_warps
    x, y, z = (*grid, 1, 1)[:3]
    stream = torch.cuda.current_stream()
    with _function(compiled.asm["ptx"], compiled.name) as function:
        if shared > 48 << 10:
            _cuda("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared)
        handle = ctypes.c_void_p(stream.cuda_stream)
        _cuda("cuLaunchKernel", function, x, y, z, threads, 1, 1, shared, handle, pointers, None)
        stream.synchronize()


@contextmanager
def _function(ptx, name):
    """A kernel out of PTX, which the driver makes this GPU's code of."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    log = ctypes.create_string_buffer(8192)
    options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
    try:
        _cuda("cuModuleLoadDataEx", ctypes.byref(module), ptx.encode(), 2, options, values)
    except RuntimeError as error:
        raise RuntimeError(f"{error}: {log.value.decode(errors='replace')}") from None
    try:
        _cuda("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        yield function
    finally:
        _cuda("cuModuleUnload", module)


def _cuda(name, *arguments):
    driver = ctypes.CDLL("libcuda.so.1")
    if status := getattr(driver, name)(*arguments):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'').decode()} ({status})")
