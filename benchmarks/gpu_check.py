"""`python benchmarks/gpu_check.py`: checks that this GPU computes correctly, then measures speed.

Takes under ten minutes. Writes a JSON file with a row per result, after each result, and prints a table at
the end. The exit status is 1 if a check failed; the timings are taken nevertheless, and marked.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository

from common.results import gpu_results_path, machine
from gpu import checks, ncu, speed
from gpu.run import Row, Run, Step, guarded, itself

# Group of steps -> description and function of each step.
STEPS: dict[str, list[tuple[str, Step]]] = {
    "correctness": [
        ("tests/ops on the GPU; model.encode fast against reference (demo fp32 and bf16, published size bf16"
         " with random weights); compute-sanitizer memcheck and racecheck on every op, small sizes",
         checks.correctness),
    ],
    "speed": [
        ("ceilings: bandwidth of a copy, bf16 matmul", speed.ceilings),
        (f"every op in bf16, batch {speed.BATCHES}: ours, eager, torch.compile; call and device time",
         speed.ops),
    ],
    "encoders": [
        (f"encoders in bf16, batch {speed.ENCODER_BATCHES}: reference eager, compiled, fast, fast in a CUDA"
         " graph; time over the floor, peak memory, kernels per call", speed.encoders),
    ],
    "ncu": [("bandwidth, occupancy and stalls of our kernels, batch 1 and 8; the longest first", ncu.ncu)],
}  # fmt: skip
TIMED = ("speed", "encoders")
# What torch.compile compiles in other processes -> the group that times it.
COMPILED = {"ops": "speed", **dict.fromkeys(speed.ENCODERS, "encoders")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<GPU>-<date>.json")
    parser.add_argument("--only", choices=STEPS)
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="what does not fit is left out and named (default 9)"
    )
    parser.add_argument("--commit", help="commit of the tree, if it is a copy without its repository")
    parser.add_argument("--dry-run", action="store_true", help="list the steps; needs no GPU")
    # What the steps run in other processes.
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    parser.add_argument("--profile", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    groups = [args.only] if args.only else list(STEPS)
    if args.dry_run:
        for group in groups:
            for description, _ in STEPS[group]:
                print(f"{group}: {description}")
        return 0
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu_check.py needs a GPU; --dry-run lists what it does")
    if args.smoke:
        checks.smoke()
        return 0
    if args.warm:
        speed.warm(args.warm)
        return 0
    if args.profile:
        ncu.profile(int(args.profile))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = args.out or gpu_results_path(torch.cuda.get_device_name())
        run = Run(path, machine(args.commit), args.minutes, Path(folder))
        run_groups(run, groups)
    print("\n".join(table(run)))
    return 0 if run.correct else 1


def run_groups(run: Run, groups: list[str]) -> None:
    """Run the steps of `groups`. Other processes compile for the timings while the checks run."""
    compilers = [start_compiler(part) for part, group in COMPILED.items() if group in groups]
    for group in groups:
        if group in TIMED:
            # Nothing else may run beside a timing.
            while compilers:
                finish(compilers.pop(0), run.left() / 2)
        for _, step in STEPS[group]:
            for row in guarded(step, run):
                run.add(row)


def start_compiler(part: str) -> subprocess.Popen:
    """Start a process that compiles the PyTorch forms of a part with few threads, as there are several."""
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    return subprocess.Popen(itself("--warm", part), env=environment, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen, seconds: float) -> None:
    """Wait for a process, and stop it after `seconds`: the timings then compile what is missing."""
    try:
        process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def table(run: Run) -> Iterator[str]:
    """The lines that a run prints last."""
    origin = run.origin
    versions = f"torch {origin['torch']}, Triton {origin['triton']}, driver {origin['driver']}"
    yield f"\n{origin['machine']}, {versions}"
    yield from _check_lines(run)
    if run.ceilings:
        bandwidth, matmul = run.ceilings["bandwidth"] / 1e9, run.ceilings["matmul"] / 1e12
        yield f"ceilings: copy {bandwidth:.0f} GB/s, bf16 matmul {matmul:.0f} TFLOP/s"
    yield from _lines(run, "op", "device us, cold L2 (call us)", _op_line)
    yield from _lines(run, "encoder", "ms (times the floor), MB beyond weights, kernels", _encoder_line)
    yield from _lines(run, "ncu", "three longest launches per batch", _ncu_line, most=3)


def _check_lines(run: Run) -> Iterator[str]:
    failed = [row for row in run.rows if row.get("ok") is False]
    judged = sum("ok" in row for row in run.rows)
    warning = "; EVERY TIME BELOW IS OF CODE THAT FAILED ONE" if failed else ""
    yield f"checks: {judged - len(failed)} of {judged} passed{warning}"
    for row in failed:
        reason = row.get("errors") or row.get("output", "")[-600:]
        reason = reason or {key: row.get(key) for key in ("error", "limit")}
        yield f"  FAILED {row['step']} {row['name']} {reason}"
    for row in run.rows:
        if "left_out" in row:
            yield f"  left out: {row['step']} {row['name']}: {row['left_out'][-200:]}"
        if row["step"] == "tests":
            yield f"  tests/ops: {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"


def _lines(run: Run, step: str, title: str, line: Callable[[Row], str], most: int = 1000) -> Iterator[str]:
    """A title and a line for each row of a step, at most `most` per batch."""
    rows = [row for row in run.rows if row["step"] == step and "batch" in row]
    if rows:
        yield f"{step}: {title}"
    for number, row in enumerate(rows):
        if sum(earlier["batch"] == row["batch"] for earlier in rows[:number]) < most:
            yield "  " + line(row)
            for name, reason in row.get("errors", {}).items():
                yield f"    {name}: {reason[:160]}"


def _op_line(row: Row) -> str:
    times = [f"{form} {us:.1f} ({row['call_us'][form]:.0f})" for form, us in row["device_us"].items()]
    start = f"{row['name']:<22}{row['batch']:>3} floor {row['floor_us']:6.1f}"
    return "  ".join([start, *times, f"{row.get('share', 0):.0%}"])


def _encoder_line(row: Row) -> str:
    cells = [f"{row['name']:<8}{row['batch']:>3} floor {row['floor_ms']:6.2f}"]
    for form, ms in row["ms"].items():
        megabytes = row["peak_bytes"][form] / 1e6
        kernels = row["kernels"].get(form, {}).get("kernels", "?")
        cells.append(f"{form} {ms:.2f} ({row['over_floor'][form]:.2f}x) {megabytes:.0f} MB {kernels}")
    return "  ".join(cells)


def _ncu_line(row: Row) -> str:
    counters = f"dram {row['dram_percent']} %  occupancy {row['occupancy_percent']} %  stalls {row['stalls']}"
    return f"{row['name']:<18}{row['batch']:>3} {row['us']:7.1f} us  {counters}"


if __name__ == "__main__":
    sys.exit(main())
