"""`python benchmarks/gpu/tune.py`: tries launch settings on this GPU and writes
nanoemox_kernels/configs/<GPU>.json.

The file is data to review and commit; it is written after every kernel. A kernel is timed through the op
calls of nanoemox_kernels/shapes.py that launch it, for 1 and 8 clips, in device time. A setting replaces the
present one only if it is faster by more than 3 % over all of these calls together."""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from nanoemox_kernels import _tuning
from nanoemox_kernels.shapes import cases

Call = Callable[[], object]
Setting = dict[str, int]

_BATCHES = (1, 8)
_GAIN = 0.97  # a setting must take less than this share of the present time
_PRODUCT = {"BLOCK_R": [16, 32], "BLOCK_N": [16, 32, 64], "BLOCK_K": [64, 128], "num_warps": [2, 4]}
# Kernel -> the values to try for each setting. Every kernel of configs/default.json has an entry.
SPACE: dict[str, dict[str, list[int]]] = {
    "gate_hidden": {"BLOCK_N": [4, 8, 16], "BLOCK_K": [128, 256, 512], "num_warps": [2, 4, 8]},
    "gate_combine": {"BLOCK": [128, 256, 512], "num_warps": [2, 4]},
    "xattn_context": {"num_warps": [1, 2, 4]},
    "rows_linear": {**_PRODUCT, "num_stages": [2, 4]},
    "fusion_project": {
        "BLOCK_R": [16, 32, 64],
        "BLOCK_N": [16, 32],
        "BLOCK_K": [64, 128],
        "num_warps": [2, 4],
        "num_stages": [3, 4],
    },
    "fusion_qkv": {**_PRODUCT, "BLOCK_R": [16]},
    "fusion_attend": {"BLOCK_R": [16], "BLOCK_N": [32, 64], "num_warps": [2, 4, 8], "num_stages": [2, 3]},
    "fusion_hidden": {**_PRODUCT, "BLOCK_R": [16]},
    "fusion_last": {**_PRODUCT, "BLOCK_R": [16]},
    "fusion_gate": {**_PRODUCT, "BLOCK_R": [16], "num_stages": [3, 4]},
    "fusion_token": {**_PRODUCT, "BLOCK_R": [16], "num_stages": [2, 3]},
    "residual_norm": {"BLOCK": [1024, 2048, 4096], "num_warps": [1, 2, 4, 8]},
    "tap_pool": {"BLOCK_N": [64, 128], "BLOCK_D": [16, 32, 64, 128], "num_warps": [1, 2, 4]},
    "tap_part": {
        "SPAN": [64, 128, 256],
        "BLOCK_N": [32, 64, 128],
        "BLOCK_D": [32, 64],
        "num_warps": [2, 4, 8],
    },
    "tap_sum": {"BLOCK_N": [16, 32, 64], "BLOCK_D": [16, 32, 64], "num_warps": [1, 2]},
    "tap_row": {"BLOCK_N": [1], "BLOCK_D": [128, 256, 512], "num_warps": [1, 2, 4]},
    "norm_act": {"BLOCK": [1024, 2048, 4096, 8192], "num_warps": [2, 4, 8]},
    "conv_norm_act": {"BLOCK": [8192, 16384, 32768], "num_warps": [4, 8, 16]},
    "activation": {"BLOCK": [1024, 2048, 4096, 8192], "num_warps": [2, 4, 8]},
    "attn": {
        "BLOCK_M": [64, 128],
        "BLOCK_N": [16, 32, 64, 128],
        "num_warps": [4, 8],
        "num_stages": [2, 3, 4],
    },
    "window_attn": {"PROGRAMS": [512, 1024, 2048, 4096], "num_warps": [2, 4], "num_stages": [1, 2, 3]},
    "time_conv": {
        "BLOCK_R": [64, 128],
        "BLOCK_N": [64],
        "BLOCK_K": [32, 64],
        "num_warps": [4, 8],
        "num_stages": [2, 3, 4],
    },
    "time_conv_one": {
        "BLOCK_R": [64, 128],
        "BLOCK_N": [64, 128, 256],
        "BLOCK_K": [64],
        "num_warps": [4, 8],
        "num_stages": [2, 3, 4],
    },
    "time_conv_wide": {
        "BLOCK_R": [64, 128],
        "BLOCK_N": [128, 256],
        "BLOCK_K": [32, 64],
        "num_warps": [4, 8],
        "num_stages": [3, 4],
    },
}


def calls(device: str = "cuda") -> dict[str, list[Call]]:
    """Kernel -> the op calls that launch it."""
    found: dict[str, list[Call]] = {kernel: [] for kernel in SPACE}
    for B in _BATCHES:
        for case in cases(B, torch.bfloat16, device=device):
            for kernel in case.kernels:
                found[kernel].append(partial(case.ours, *case.inputs))
    return found


def candidates(kernel: str) -> Iterator[Setting]:
    space = SPACE[kernel]
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def device_time(call: Call, repeats: int = 50) -> float:
    """Median device microseconds of a call inside a CUDA graph of ten."""
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            call()
    times = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 100)
    return statistics.median(times)


def tune(
    kernel: str,
    settings: dict[str, Setting],
    uses: list[Call],
    end: float,
    clock: Callable[[Call], float] = device_time,
) -> tuple[Setting, str]:
    """Try the settings of one kernel until `end` (of time.monotonic).

    Args:
        settings: of the GPU in use; the entry of `kernel` is replaced while it is tried, and holds the best
            at last.
        uses: calls that launch the kernel.
        clock: microseconds of a call.

    Returns:
        The best setting, {} if the present one stays, and a line for the log. A setting that fails is
        reported and passed over; so is a kernel that fails with its present setting.
    """
    present, best, tried, failed = dict(settings[kernel]), {}, 0, []
    try:
        before = least = sum(map(clock, uses))
    except (
        Exception
    ) as error:  # a launch can fail in many ways, and the other kernels are to be tuned all the same
        return {}, f"{kernel}: fails with its present setting {present}: {_first_line(error)}"
    for setting in candidates(kernel):
        if time.monotonic() > end:
            break
        settings[kernel] = setting
        try:
            taken = sum(map(clock, uses))
        except Exception as error:  # too much shared memory, say: not a setting for this GPU
            failed.append(f"  {setting} fails: {_first_line(error)}")
            continue
        tried += 1
        if taken < min(least, _GAIN * before):
            least, best = taken, setting
    settings[kernel] = best or present
    line = f"{kernel}: {before:.1f} -> {least:.1f} us, {settings[kernel]} ({tried} tried)"
    return best, "\n".join([line, *failed])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"


def write(path: Path, entries: dict[str, dict]) -> None:
    """One entry a line, so that a review sees which kernels changed."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(values)}" for name, values in entries.items())
    path.write_text("{\n" + lines + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", nargs="+", choices=SPACE, default=list(SPACE), help="default: all")
    parser.add_argument("--minutes", type=float, default=60.0, help="what does not fit keeps its settings")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tune.py needs a GPU")
    gpu, end = torch.cuda.get_device_name(), time.monotonic() + 60 * args.minutes
    settings, path = _tuning.load(gpu), _tuning.path(gpu)
    entries = json.loads(path.read_text()) if path.is_file() else {}
    with torch.inference_mode():
        uses = calls()
        for kernel in args.kernels:
            best, line = tune(kernel, settings, uses[kernel], end)
            if best:
                entries[kernel] = best
                write(path, entries)
            print(line, flush=True)
    print(f"wrote {path}" if entries else "no setting was better: nothing written")


if __name__ == "__main__":
    main()
