"""`python benchmarks/cpu/memory.py`: peak memory of an encoder call beyond the weights.

Each encoder with 12 and with 24 layers, accelerated and reference, in a separate process. A figure is the
largest resident memory (VmHWM, which is reset right before the call) less the resident memory at that time. A
first call on one frame or window has touched every weight by then. The allocator returns freed memory to the
system at once, so that a figure counts live memory only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.results import argument_parser, write

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
ENCODERS = {"vision": (1, 8, 3, 224, 224), "audio": (1, 8, 32000)}


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS, resident now, or VmHWM, the largest until now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(folder: str, encoder: str, fast: bool) -> None:
    """Measure one encoder in this process; prints JSON with the bytes of "peak"."""
    import torch

    import nanoemox

    torch.manual_seed(0)
    part = getattr(nanoemox.load(folder, fast=fast, device="cpu", dtype="bfloat16"), encoder)
    size = ENCODERS[encoder]
    x = torch.randint(0, 256, size).float() if encoder == "vision" else torch.randn(size) / 10
    with torch.inference_mode():
        part(x[:, :1])
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        part(x)
    print(json.dumps({"peak": resident("VmHWM") - before}))


def measure_elsewhere(bundle: Path, encoder: str, form: str) -> int:
    """What `measure` prints, from a new process."""
    arguments = [sys.executable, __file__, "--measure", str(bundle), encoder, form]
    environment = os.environ | ALLOCATOR
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])["peak"]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        bundle, encoder, form = args.measure
        return measure(bundle, encoder, form == "fast")
    from common.bundles import encoder_bundle

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = {layers: encoder_bundle(Path(folder), layers) for layers in (12, 24)}
        for encoder in ENCODERS:
            peak = {
                (form, layers): measure_elsewhere(bundle, encoder, form)
                for form in ("fast", "reference")
                for layers, bundle in bundles.items()
            }
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
