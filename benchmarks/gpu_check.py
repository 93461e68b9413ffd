"""`python benchmarks/gpu_check.py`: is it right on this GPU, and how fast? One command, under ten minutes.

Every check first, then every timing. Writes a JSON file with a row a result, after each of them, and prints a
table last. Exit status 1 if a check failed; timings are taken all the same, and marked."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tree itself, installed or not

from common.results import gpu_results_path, machine
from gpu import checks, ncu, speed
from gpu.run import Row, Run, Step, guarded, itself

STEPS: dict[str, list[tuple[str, Step]]] = {
    "correctness": [
        ("tests/ops on the GPU; model.encode fast against slow (demo fp32 and bf16, true size bf16, random"
         " weights); compute-sanitizer memcheck and racecheck on every op, small sizes", checks.correctness),
    ],
    "speed": [
        ("ceilings: a copy's bandwidth, bf16 matmul", speed.ceilings),
        (f"every op in bf16, batch {speed.BATCHES}: ours, eager, torch.compile; call and device time",
         speed.ops),
    ],
    "encoders": [
        (f"encoders in bf16, batch {speed.ENCODER_BATCHES}: reference eager, compiled, fast, fast in a CUDA"
         " graph; time over the floor, peak memory, kernels a call", speed.encoders),
    ],
    "ncu": [("our kernels' bandwidth, occupancy and stalls, batch 1 and 8; the longest first", ncu.ncu)],
}  # fmt: skip
WARM = ("ops", *speed.ENCODERS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<GPU>-<date>.json")
    parser.add_argument("--only", choices=STEPS)
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="what does not fit is left out and said (default 9)"
    )
    parser.add_argument("--commit", help="where the tree is a copy without its repository")
    parser.add_argument("--dry-run", action="store_true", help="list the steps; needs no GPU")
    for name in ("--smoke", "--warm", "--profile"):  # what the steps run in processes of their own
        parser.add_argument(
            name, help=argparse.SUPPRESS, **({"action": "store_true"} if name == "--smoke" else {})
        )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    chosen = [args.only] if args.only else list(STEPS)
    if args.dry_run:
        for name in chosen:
            for what, _ in STEPS[name]:
                print(f"{name}: {what}")
        return 0
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu_check.py needs a GPU; --dry-run lists what it does")
    if args.smoke or args.warm or args.profile:
        if args.smoke:
            checks.smoke()
        elif args.warm:
            speed.warm(args.warm)
        else:
            ncu.profile(int(args.profile))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = args.out or gpu_results_path(torch.cuda.get_device_name())
        run = Run(path, machine(args.commit), args.minutes, Path(folder))
        compilers = [compiler(what) for what in WARM if ("speed" if what == "ops" else "encoders") in chosen]
        for name in chosen:
            if name in ("speed", "encoders"):
                while compilers:  # nothing else may run beside a timing
                    finish(compilers.pop(0), run.left() / 2)
            for _, step in STEPS[name]:
                for row in guarded(step, run):
                    run.add(row)
    print("\n".join(table(run)))
    return 0 if run.correct else 1


def compiler(what: str) -> subprocess.Popen:
    """A process that compiles for PyTorch's ways, with few threads, for there are several."""
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    return subprocess.Popen(itself("--warm", what), env=environment, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen, seconds: float) -> None:
    try:
        process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:  # the timings compile what is missing, or say that no time is left
        process.kill()
        process.wait()


def table(run: Run) -> Iterator[str]:
    """What to read first."""
    source = run.origin
    versions = f"torch {source['torch']}, Triton {source['triton']}, driver {source['driver']}"
    yield f"\n{source['machine']}, {versions}"
    failed = [row for row in run.rows if row.get("ok") is False]
    judged = sum("ok" in row for row in run.rows)
    yield f"checks: {judged - len(failed)} of {judged} passed" + (
        "; EVERY TIME BELOW IS OF CODE THAT FAILED ONE" if failed else ""
    )
    for row in failed:
        yield f"  FAILED {row['step']} {row['name']} " + str(
            row.get("errors") or row.get("output", "")[-600:] or {k: row.get(k) for k in ("error", "limit")}
        )
    for row in run.rows:
        if "left_out" in row:
            yield f"  left out: {row['step']} {row['name']}: {row['left_out'][-200:]}"
        if row["step"] == "tests":
            yield f"  tests/ops: {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
    if run.ceilings:
        bandwidth, matmul = run.ceilings["bandwidth"] / 1e9, run.ceilings["matmul"] / 1e12
        yield f"ceilings: copy {bandwidth:.0f} GB/s, bf16 matmul {matmul:.0f} TFLOP/s"
    yield from _lines(run, "op", "device us, cold L2 (call us)", lambda row: (
        f"{row['name']:<22}{row['batch']:>3} floor {row['floor_us']:6.1f}  "
        + "  ".join(f"{n} {t:.1f} ({row['call_us'][n]:.0f})" for n, t in row["device_us"].items())
        + f"  {row.get('share', 0):.0%}"
    ))  # fmt: skip
    yield from _lines(run, "encoder", "ms (times the floor), MB beyond weights, kernels", lambda row: (
        f"{row['name']:<8}{row['batch']:>3} floor {row['floor_ms']:6.2f}  "
        + "  ".join(
            f"{n} {t:.2f} ({row['over_floor'][n]:.2f}x) {row['peak_bytes'][n] / 1e6:.0f} MB"
            f" {row['kernels'].get(n, {}).get('kernels', '?')}"
            for n, t in row["ms"].items()
        )
    ))  # fmt: skip
    yield from _lines(run, "ncu", "three longest launches a batch", lambda row: (
        f"{row['name']:<18}{row['batch']:>3} {row['us']:7.1f} us  dram {row['dram_percent']} %  occupancy"
        f" {row['occupancy_percent']} %  stalls {row['stalls']}"
    ), most=3)  # fmt: skip


def _lines(run: Run, step: str, title: str, line: Callable[[Row], str], most: int = 1000) -> Iterator[str]:
    rows = [row for row in run.rows if row["step"] == step and "batch" in row]
    for number, row in enumerate(rows):
        if number == 0:
            yield f"{step}: {title}"
        if sum(other["batch"] == row["batch"] for other in rows[:number]) < most:
            yield "  " + line(row)
            for name, why in row.get("errors", {}).items():
                yield f"    {name}: {why[:160]}"


if __name__ == "__main__":
    sys.exit(main())
