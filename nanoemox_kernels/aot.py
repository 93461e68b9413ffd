"""Compiles every Triton kernel ahead of time at the model's shapes, without a GPU: `python -m
nanoemox_kernels.aot`.

The ops are called as the model calls them for one clip (shapes.py), on tensors without memory, and their
launches are recorded in place of being run. A row per launch and architecture: registers, shared memory,
spills, 128-bit loads, predicted occupancy, and the bytes of the tensors that the launch is given, with the
time that an RTX 4090 needs for them at 1008 GB/s. A tensor counts whole and once, also where a launch reads
and writes it or reads a row of it alone. Nothing here is a measurement."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import _tuning
from ._library import CUDA_IMPLEMENTATIONS
from .shapes import cases

BF16, FP32 = torch.bfloat16, torch.float32
# Per SM: registers, threads, shared memory in bytes, blocks (CUDA programming guide, compute capabilities).
ARCHITECTURES = {
    "sm_80": (65536, 2048, 167_936, 32),
    "sm_89": (65536, 1536, 102_400, 24),
    "sm_90": (65536, 2048, 233_472, 32),
}
RTX4090_BANDWIDTH = 1008e9
_POINTERS = {BF16: "*bf16", torch.float16: "*fp16", FP32: "*fp32"}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: a value for every argument, tensors for pointers."""

    kernel: Any
    arguments: dict[str, Any]

    @property
    def moved(self) -> int:
        """Bytes of the tensors that it is given, each counted once."""
        tensors = {id(value): value for value in self.arguments.values() if isinstance(value, Tensor)}
        return sum(tensor.nbytes for tensor in tensors.values())


@dataclass(frozen=True)
class Row:
    """One launch compiled for one architecture. `kernel` is the case of shapes.py and the kernel's name."""

    kernel: str
    arch: str
    registers: int
    shared: int
    spills: int
    wide_loads: int
    loads: int
    occupancy: float
    moved: int
    floor_us: float


def specialise(kernel: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    """(source, options) for triton.compile, as a launch with these arguments would have them.

    Args:
        arguments: by name, num_warps and num_stages among them; a pointer is a tensor, or the dtype of an
            aligned one.
    """
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    aligned: list[int] = []
    for position, parameter in enumerate(kernel.params):
        value, specialised = arguments[parameter.name], not parameter.do_not_specialize
        if parameter.is_constexpr or (type(value) is int and value == 1 and specialised):
            signature[parameter.name] = "constexpr"
            constants[(position,)] = value
        elif isinstance(value, torch.dtype | Tensor):
            signature[parameter.name] = _POINTERS[value if isinstance(value, torch.dtype) else value.dtype]
            if isinstance(value, torch.dtype) or value.data_ptr() % 16 == 0:
                aligned.append(position)
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and specialised:
                aligned.append(position)
    attributes = {(position,): [["tt.divisibility", 16]] for position in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return source, {key: arguments[key] for key in ("num_warps", "num_stages") if key in arguments}


class _ToLaunchers(TorchDispatchMode):
    """Sends our ops to their CUDA implementation, on whatever device their tensors are."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "nanoemox":
            return CUDA_IMPLEMENTATIONS[name](*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Ops that are called inside, on meta tensors, launch nothing: their launches are appended to the list.

    Launch settings are those for any GPU, whatever GPU is in the machine. For a process of its own: it
    replaces Triton's launch and the count of GPUs until the end."""
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        launches.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | named))

    run, count = JITFunction.run, _tuning._count
    JITFunction.run, _tuning._count = record, lambda: 0  # type: ignore[assignment]
    try:
        with torch.inference_mode(), _ToLaunchers():
            yield launches
    finally:
        JITFunction.run, _tuning._count = run, count


def model_launches() -> dict[str, Launch]:
    """Every launch of every case of shapes.py for one clip in bf16, by the case and the kernel's name."""
    named: dict[str, Launch] = {}
    for case in cases(1, BF16, device="meta"):
        with recorded_launches() as launches:
            case.ours(*case.inputs)
        names = [launch.kernel.__name__ for launch in launches]
        for number, launch in enumerate(launches):
            repeated = names.count(names[number]) > 1
            suffix = f" {names[:number].count(names[number]) + 1}" if repeated else ""
            named[f"{case.name}: {names[number].lstrip('_')}{suffix}"] = launch
    return named


def compile_launch(name: str, launch: Launch, arch: str) -> Row:
    """Compile one launch for `arch` and read its resources off the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget

    source, options = specialise(launch.kernel, launch.arguments)
    compiled = triton.compile(source, target=GPUTarget("cuda", int(arch[3:]), 32), options=options)
    registers, spills, wide_loads, loads = _read(compiled.asm["cubin"])
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    return Row(
        name,
        arch,
        registers,
        shared,
        spills,
        wide_loads,
        loads,
        occupancy(arch, registers, shared, warps),
        launch.moved,
        launch.moved / RTX4090_BANDWIDTH * 1e6,
    )


def _read(cubin: bytes) -> tuple[int, int, int, int]:
    """(registers, spill instructions, 128-bit global loads, global loads)."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def output(tool: str, *options: str) -> str:
            return subprocess.run(
                [tools / tool, *options, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage = output("cuobjdump", "-res-usage")
        code = output("nvdisasm", "-c")
    registers = re.search(r"\bREG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"cuobjdump printed no register count: {usage[:200]}")
    loads = re.findall(r"\bLDG(?:STS)?\.[\w.]+", code)  # LDGSTS is the asynchronous copy into shared memory
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return int(registers[1]), spills, sum(".128" in load for load in loads), len(loads)


def occupancy(arch: str, registers: int, shared: int, warps: int) -> float:
    """Share of an SM's warps that its registers, shared memory and block slots let run at once."""
    file, threads, memory, blocks = ARCHITECTURES[arch]
    per_warp = -(-registers * 32 // 256) * 256  # registers are handed out to a warp 256 at a time
    fitting = min(file // (per_warp * warps), threads // (32 * warps), blocks)
    if shared:
        fitting = min(fitting, memory // (shared + 1024))  # 1 KiB a block is the system's
    return fitting * warps * 32 / threads


def table() -> list[Row]:
    """A row per launch and architecture."""
    launches = model_launches()
    return [compile_launch(name, launch, arch) for name, launch in launches.items() for arch in ARCHITECTURES]


def main() -> None:
    rows = table()
    if "--json" in sys.argv[1:]:
        print(json.dumps([asdict(row) for row in rows]))
        return
    width = max(len(row.kernel) for row in rows) + 2
    print(f"{'launch':<{width}}arch    regs   smem spills 128-bit  occup.      bytes  4090 us")
    for r in rows:
        loads = f"{r.wide_loads}/{r.loads}"
        print(
            f"{r.kernel:<{width}}{r.arch:<7}{r.registers:>5}{r.shared:>7}{r.spills:>7}{loads:>8}"
            f"{r.occupancy:>8.0%}{r.moved:>11,}{r.floor_us:>9.2f}"
        )


if __name__ == "__main__":
    main()
