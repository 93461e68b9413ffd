"""Hardware counters of the Triton kernels: Nsight Compute profiles a process that calls each op once."""

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .run import Row, Run, command, itself, tool

_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
_STALLS = (
    "barrier",
    "branch_resolving",
    "dispatch_stall",
    "drain",
    "imc_miss",
    "lg_throttle",
    "long_scoreboard",
    "math_pipe_throttle",
    "membar",
    "mio_throttle",
    "no_instruction",
    "not_selected",
    "short_scoreboard",
    "sleeping",
    "tex_throttle",
    "wait",
)
_METRICS = {
    "ns": "gpu__time_duration.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_bytes": "dram__bytes.sum",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}


def kernel_names() -> list[str]:
    """Names of our Triton kernels in the machine code."""
    from importlib import import_module

    from triton.runtime.jit import JITFunction

    import nanoemox_kernels.ops

    folder = Path(nanoemox_kernels.ops.__file__).parent
    names = set()
    for path in folder.glob("*/kernel.py"):
        module = import_module(f"nanoemox_kernels.ops.{path.parent.name}.kernel")
        functions = [value for value in vars(module).values() if isinstance(value, JITFunction)]
        names |= {function.__name__ for function in functions}
    return sorted(name for name in names if name.startswith("_"))


def profile(B: int) -> None:
    """Each op at published size: once to compile its kernels, then once between the profiler's marks."""
    from common.cases import cases

    with torch.inference_mode():
        for case in cases(B, torch.bfloat16):
            for started in (False, True):
                if started:
                    torch.cuda.synchronize()
                    torch.cuda.profiler.start()
                case.functions["ours"](*case.inputs)
                torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def ncu(run: Run) -> Iterator[Row]:
    """A row per launch, the longest first. The tool clears the caches before each launch."""
    path = tool("ncu")
    if path is None:
        yield {"step": "ncu", "name": "all kernels", "left_out": "no ncu here"}
        return
    metrics = ",".join([*_METRICS.values(), *map(_STALL.format, _STALLS)])
    names = "regex:^(" + "|".join(kernel_names()) + ")"
    for B in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            options = ["--csv", "--print-units", "base", "--clock-control", "none"]
            options += ["--profile-from-start", "off", "--kernel-name", names]
            options += ["--metrics", metrics, "--log-file", str(log)]
            arguments = [path, *options, *itself("--profile", str(B))]
            status, output = command(arguments, run.left())
            output += log.read_text() if log.is_file() else ""
        launches = read(output)
        if status or not launches:
            yield {"step": "ncu", "name": f"batch {B}", "left_out": f"exit status {status}: {output[-1000:]}"}
            return
        for launch in sorted(launches, key=lambda launch: -launch["us"]):
            yield {"step": "ncu", "name": launch.pop("kernel"), "batch": B, **launch}


def read(output: str) -> list[Row]:
    """The rows of ncu's table, which has one line per launch, or one line per launch and metric."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(lines):
        launch = launches.setdefault(line["ID"], {})
        launch |= {"Kernel Name": line["Kernel Name"], "Grid Size": line["Grid Size"]}
        launch |= {line["Metric Name"]: line["Metric Value"]} if "Metric Name" in line else line
    # The line of units has no kernel name.
    return [_launch(launch) for launch in launches.values() if launch.get("Kernel Name")]


def _launch(values: dict[str, str]) -> Row:
    """The row of one launch. A metric that ncu did not report is None."""

    def number(metric: str) -> float | None:
        text = values.get(metric, "").replace(",", "")
        return float(text) if text.replace(".", "", 1).isdigit() else None

    row: Row = {"kernel": values["Kernel Name"].partition("(")[0], "grid": values["Grid Size"]}
    row |= {name: number(metric) for name, metric in _METRICS.items()}
    row["us"] = (row.pop("ns") or 0) / 1e3
    stalls = {reason: number(_STALL.format(reason)) or 0 for reason in _STALLS}
    # The three most frequent reasons; warps per cycle in which an instruction was issued.
    row["stalls"] = dict(sorted(stalls.items(), key=lambda item: -item[1])[:3])
    return row
