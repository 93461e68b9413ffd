"""`python benchmarks/gpu/profile_encoders.py`: device time of the fast encoders by kernel.

Random weights at published size in bf16, no CUDA graph, batch 1 and 8. Prints for each encoder the kernels
that take longest, in device microseconds per call, and the sum over all kernels. Needs a GPU.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common import clocks
from common.results import Row, write

CALLS = 5


@torch.inference_mode()
def kernel_times(call: clocks.Call, calls: int = CALLS) -> list[Row]:
    """The kernels and copies of a call: name, launches and device microseconds per call, longest first."""
    clocks.warm(call)
    times: dict[str, list[float]] = defaultdict(list)
    for event in clocks.device_events(call, calls):
        times[event.name].append(event.time_range.elapsed_us())
    rows = [
        {"kernel": name, "launches": len(us) / calls, "us": sum(us) / calls} for name, us in times.items()
    ]
    return sorted(rows, key=lambda row: -row["us"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["vision", "audio", "face"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("profile_encoders.py needs a GPU")
    from gpu import speed
    from gpu.run import Run

    results: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Run(Path(folder) / "none.json", {}, 10, Path(folder)).fast
        for B in args.batch:
            inputs = speed.clips(B)
            for part in args.parts:
                encoder, x = getattr(model, part), inputs[speed.ENCODERS[part][1]]
                rows = kernel_times(partial(encoder, x))
                results.append({"part": part, "batch": B, "kernels": rows})
                launches, total = (sum(row[key] for row in rows) for key in ("launches", "us"))
                print(f"\n{part}, batch {B}: {total:.0f} us of {launches:.0f} launches a call")
                for row in rows[: args.top]:
                    share, times = row["us"] / total, row["launches"]
                    print(f"{row['us']:9.1f} us {share:5.0%} {times:6.0f}x  {row['kernel'][:110]}")
    if args.out:
        write(args.out, results)


if __name__ == "__main__":
    main()
