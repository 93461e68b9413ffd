"""`python benchmarks/cpu/memory.py`: peak memory of an encoder call beyond the weights, 12 and 24 layers,
both forms.

Each figure is from a process of its own: the peak of resident memory (VmHWM, reset right before the call)
less what was resident then, the model loaded and every weight touched by a first call on one frame or window.
The allocator is told to give freed memory back at once, so that what is alive counts, not what an earlier
call left in the heap.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.results import write

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
ENCODERS = {"vision": (1, 8, 3, 224, 224), "audio": (1, 8, 32000)}


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def one(folder: str, encoder: str, fast: bool) -> None:
    import torch

    import nanoemox

    torch.manual_seed(0)
    part = getattr(nanoemox.load(folder, fast=fast, device="cpu", dtype="bfloat16"), encoder)
    size = ENCODERS[encoder]
    given = torch.randint(0, 256, size).float() if encoder == "vision" else torch.randn(size) / 10
    with torch.inference_mode():
        part(given[:, :1])
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        part(given)
    print(json.dumps({"peak": resident("VmHWM") - before}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    if args.one:
        return one(args.one[0], args.one[1], args.one[2] == "fast")
    from common.bundles import encoder_bundle

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = {layers: encoder_bundle(Path(folder), layers) for layers in (12, 24)}
        for encoder in ENCODERS:
            peak = {}
            for form in ("fast", "reference"):
                for layers, bundle in bundles.items():
                    run = [sys.executable, __file__, "--one", str(bundle), encoder, form]
                    done = subprocess.run(
                        run, capture_output=True, text=True, check=True, env=os.environ | ALLOCATOR
                    )
                    peak[form, layers] = json.loads(done.stdout.splitlines()[-1])["peak"]
            rows.append({
                "case": encoder,
                **{f"{form} {layers}": round(value / 2**20, 1) for (form, layers), value in peak.items()},
                "24 over 12 layers": round(peak["fast", 24] / peak["fast", 12], 3),
                "fast over reference": round(peak["fast", 24] / peak["reference", 24], 3),
            })  # fmt: skip
            print("MiB beyond the weights:", rows[-1], flush=True)
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    main()
