"""`python benchmarks/gpu/profile_encoders.py`: which kernels the fast encoders' device time goes to.

Random weights at true size in bf16, no CUDA graph, batch 1 and 8: a table of the longest kernels a part, in
device microseconds a call, and the sum over all of them. Needs a GPU; --out also writes the rows as JSON.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

CALLS = 5


@torch.inference_mode()
def longest(call, calls: int = CALLS) -> list[dict]:
    """Every kernel and copy of a call by name: launches and device us a call, the longest first."""
    from common import clocks as timing
    from torch.autograd import DeviceType

    timing.warm(call)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profile.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            found[event.name].append(event.time_range.elapsed_us())
    rows = [
        {"kernel": name, "launches": len(us) / calls, "us": sum(us) / calls} for name, us in found.items()
    ]
    return sorted(rows, key=lambda row: -row["us"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["vision", "audio", "face"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("profile_encoders.py needs a GPU")
    from gpu import speed
    from gpu.run import Run

    kept = []
    with tempfile.TemporaryDirectory() as folder:
        model = Run(Path(folder) / "none.json", {}, 10, Path(folder)).fast
        for B in args.batch:
            inputs = speed.clips(B)
            for part in args.parts:
                encoder, x = getattr(model, part), inputs[speed.ENCODERS[part][1]]
                rows = longest(lambda encoder=encoder, x=x: encoder(x))
                kept.append({"part": part, "batch": B, "kernels": rows})
                launches, total = (sum(row[key] for row in rows) for key in ("launches", "us"))
                print(f"\n{part}, batch {B}: {total:.0f} us of {launches:.0f} launches a call")
                for row in rows[: args.top]:
                    share, times = row["us"] / total, row["launches"]
                    print(f"{row['us']:9.1f} us {share:5.0%} {times:6.0f}x  {row['kernel'][:110]}")
    if args.out:
        args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
