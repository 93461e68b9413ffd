"""`python benchmarks/gpu/tune.py`: tries launch settings on this GPU and writes nanoemox_kernels/configs/<GPU>.json.

The file is data to review and commit. Each kernel is timed through its op at the model's sizes, batch 1 and 8, in
device time; a setting replaces the default only where it is faster by more than 3 % over both together.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

import nanoemox_kernels as nk
from nanoemox_kernels import _tuning

BF16 = torch.bfloat16
# kernel -> the values to try for each setting
SPACE = {
    "gate_hidden": {"BLOCK_N": [4, 8, 16], "BLOCK_K": [128, 256, 512], "num_warps": [2, 4, 8]},
    "gate_combine": {"BLOCK": [128, 256, 512], "num_warps": [2, 4]},
    "xattn_context": {"num_warps": [1, 2, 4]},
    "rows_linear": {"BLOCK_R": [16, 32], "BLOCK_N": [16, 32, 64], "BLOCK_K": [64, 128], "num_warps": [2, 4]},
    "residual_norm": {"BLOCK": [1024, 2048, 4096], "num_warps": [1, 2, 4, 8]},
    "tap_pool": {"BLOCK_D": [16, 32, 64, 128], "BLOCK_N": [64, 128], "num_warps": [1, 2, 4]},
    "norm_act": {"BLOCK": [1024, 2048, 4096, 8192], "num_warps": [2, 4, 8]},
    "conv_norm_act": {"BLOCK": [8192, 16384, 32768], "num_warps": [4, 8, 16]},
    "tap_part": {"SPAN": [64, 128, 256], "BLOCK_D": [32, 64], "BLOCK_N": [32, 64, 128], "num_warps": [2, 4, 8]},
    "activation": {"BLOCK": [1024, 2048, 4096, 8192], "num_warps": [2, 4, 8]},
    "attn": {"BLOCK_M": [64, 128], "BLOCK_N": [16, 32, 64, 128], "num_warps": [4, 8], "num_stages": [2, 3, 4]},
    "window_attn": {"PROGRAMS": [512, 1024, 2048, 4096], "num_warps": [2, 4], "num_stages": [1, 2, 3]},
    "time_conv": {
        "BLOCK_R": [64, 128], "BLOCK_N": [64], "BLOCK_K": [32, 64], "num_warps": [4, 8], "num_stages": [2, 3, 4],
    },
    "time_conv_one": {
        "BLOCK_R": [64, 128], "BLOCK_N": [64, 128, 256], "BLOCK_K": [64], "num_warps": [4, 8], "num_stages": [2, 3, 4],
    },
    "time_conv_wide": {
        "BLOCK_R": [64, 128], "BLOCK_N": [128, 256], "BLOCK_K": [32, 64], "num_warps": [4, 8], "num_stages": [3, 4],
    },
}  # fmt: skip


def tensor(*size: int) -> torch.Tensor:
    return (torch.randn(size) * size[-1] ** -0.5).to("cuda", BF16)


def calls(B: int) -> dict[str, list]:
    """kernel -> the calls of ops that launch it."""
    E, T, D, H, W, C, M, P = 3, 8, 1024, 512, 1536, 256, 4, 768
    gate = tensor(B, E, T, H), tensor(H, E * H), tensor(H), tensor(E, H), tensor(E)
    face = nk.TemporalXattnWeights(
        tensor(M, C), tensor(3 * C, C), tensor(3 * C), tensor(C, C), tensor(C), tensor(P, C), tensor(P), tensor(W, P),
        tensor(W),
    )  # fmt: skip
    folded, x = nk.fold_temporal_xattn(face), tensor(B, T, C)
    hidden, update, weight, bias = tensor(B * T, 257, D), tensor(B * T, 257, D), tensor(D), tensor(D)
    stage, short = tensor(B * T, 56 * 56, 128), (tensor(128), tensor(128))
    still = torch.zeros_like(stage)
    out = torch.zeros(B * T, D, device="cuda")

    def run_gate():
        return nk.expert_gate(*gate, pooled=True)

    def run_xattn():
        return nk.temporal_xattn(x, folded)

    def run_norm():
        nk.feature_taps_(hidden, update, weight, bias)
        return nk.feature_taps_(stage, still, *short)

    def run_pool():
        return nk.tap_pool_(out, hidden, 0.25, "mean")

    qkv, pairs = tensor(B * T, 14 * 14, 3 * H), tensor(16, 64, 64)
    row, filters, front = tensor(B * T, 99, D), tensor(D, 128 * 64), tensor(H, 3 * H)
    wave = tensor(B * T, 3199, H)

    def run_windows():
        return nk.window_attn(qkv, pairs, 14, 14, window=7, shift=3)

    layers = [
        tensor(B * T, rows, 3 * D).unflatten(-1, (3, 16, 64)).permute(2, 0, 3, 1, 4) for rows in (257, 99)
    ]

    def run_attn(i):
        return nk.attn(*layers[i])

    def run_positions():
        return nk.time_conv(row, filters, weight, kernel=128, padding=64, trim=1, gelu=True)

    def run_front():
        return nk.time_conv(wave, front, kernel=3, stride=2)

    signal, taps, scale, shift = tensor(B * T, 32000), tensor(H, 10), tensor(H), tensor(H)

    def run_first():
        return nk.conv_norm_act(signal, taps, shift, scale, shift, stride=5, gelu=True)

    def run_act():
        return nk.norm_act(wave, scale, shift, gelu=True)

    wide = tensor(B * T, 257, 4 * D)

    short = tensor(B * T, 99, 4 * D)

    def run_quick():
        return nk.quick_gelu_(wide)

    def run_gelu():
        return nk.gelu_(short)

    means = torch.zeros(B * T, 128, device="cuda")

    def run_part():
        return nk.tap_pool_(means, stage, 1.0, "mean")

    maps = [(stage, 128), (tensor(B * T, 196, 512), 512)]
    ups = [(x, tensor(4 * C, C), tensor(4 * C)) for x, C in maps]

    def run_up(i):
        return nk.time_conv(*ups[i], kernel=1, gelu=True)

    return {
        "attn": [lambda: run_attn(0), lambda: run_attn(1)],
        "time_conv_one": [lambda: run_up(0), lambda: run_up(1)], "tap_part": [run_part],
        "activation": [run_quick, run_gelu], "norm_act": [run_act], "conv_norm_act": [run_first],
        "window_attn": [run_windows], "time_conv": [run_positions], "time_conv_wide": [run_front],
        "gate_hidden": [run_gate], "gate_combine": [run_gate], "xattn_context": [run_xattn], "rows_linear": [run_xattn],
        "residual_norm": [run_norm], "tap_pool": [run_pool],
    }  # fmt: skip


def device_time(call, repeats: int = 50) -> float:
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
    found = json.loads(path.read_text()) if path.is_file() else {}
    with torch.inference_mode():
        cases = [calls(B) for B in (1, 8)]
        for kernel in args.kernels:
            chosen, tried = tune(kernel, settings, [call for case in cases for call in case[kernel]], end)
            found |= {kernel: chosen} if chosen else {}
            rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
            path.write_text("{\n" + rows + "\n}\n")
            print(tried, flush=True)
    print(f"wrote {path}")


def tune(
    kernel: str, settings: dict[str, dict[str, int]], uses: list, end: float
) -> tuple[dict[str, int], str]:
    """The best settings, {} where the present ones are, and a line that says so; stops looking at `end`."""
    default, chosen = dict(settings[kernel]), {}
    before = best = sum(map(device_time, uses))
    tried = 0
    for values in itertools.product(*SPACE[kernel].values()):
        if time.monotonic() > end:
            break
        settings[kernel] = dict(zip(SPACE[kernel], values, strict=True))
        try:
            taken = sum(map(device_time, uses))
        except Exception as error:  # too much shared memory, say: not a setting for this GPU
            print(f"{kernel} {settings[kernel]}: {str(error).splitlines()[0][:100]}")
            continue
        tried += 1
        if taken < min(best, 0.97 * before):
            best, chosen = taken, settings[kernel]
    settings[kernel] = chosen or default
    return chosen, f"{kernel}: {before:.1f} -> {best:.1f} us, {settings[kernel]} ({tried} tried)"


if __name__ == "__main__":
    main()
