"""`pytest benchmarks/ --benchmark-only`: the implementations of a case take turns in one process.

Two times must not be mixed: wall time (one synchronization per call) and, on a GPU, device time (CUDA events,
after L2 was overwritten). A share is the least possible time over the measured time. The least possible time
follows from ceilings that are probed in the same rounds: a copy for bytes, a bfloat16 matrix product for
FLOPs. On a CPU, whose last-level cache holds the weights of an op, a share may exceed 100 %.
"""

import statistics

import pytest
import torch
from common.clocks import TurnClock
from common.results import write

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_TABLE: list[dict] = []


def pytest_addoption(parser):
    parser.addoption("--results", help="write the rows and the machine that they come from to this JSON file")
    parser.addoption("--rounds", type=int, default=30, help="rounds per case (default 30)")


@pytest.fixture(scope="session")
def device():
    return DEVICE


@pytest.fixture(scope="session")
def clock():
    return TurnClock(DEVICE)


@pytest.fixture(scope="session")
def probes():
    """Name -> (call, bytes or FLOP per call): the probes of this machine's memory and matrix units."""
    big = 1 if DEVICE == "cpu" else 8
    source = torch.ones(big << 25, device=DEVICE)
    target = torch.empty_like(source)
    a = torch.randn(2048 * big // 2 or 1024, 4096, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(4096, 4096, device=DEVICE, dtype=torch.bfloat16)
    return {
        "bandwidth": (lambda: target.copy_(source), 2 * source.nbytes),
        "matmul": (lambda: a @ b, 2 * a.shape[0] * 4096 * 4096),
    }


@pytest.fixture
def measure(request, benchmark, clock, probes):
    """A function that times implementations in turn, adds a row to the table and returns it.

    `measure(case, calls, moved, flops, rounds, warm)`: title of the row; name -> call, ours first; least
    bytes that a call moves; its FLOP; rounds (default: --rounds); calls before the first round.
    """

    def run(case, calls, moved, flops=0, rounds=None, warm=3):
        with torch.inference_mode():
            probe_calls = [call for call, _ in probes.values()]
            for call in (*calls.values(), *probe_calls):
                for _ in range(warm):
                    call()
            walls: dict[str, list[float]] = {name: [] for name in (*calls, *probes)}
            devices: dict[str, list[float]] = {name: [] for name in calls}
            rounds = rounds or request.config.getoption("--rounds")
            for index in range(rounds):
                for name, call in calls.items():
                    wall, on_device = clock.once(call)
                    walls[name].append(wall)
                    devices[name].append(on_device)
                if index % max(1, rounds // 5) == 0:
                    for name, (call, _) in probes.items():
                        walls[name].append(clock.once(call, flush=False)[0])
            ours = next(iter(calls))
            benchmark.pedantic(calls[ours], rounds=3, warmup_rounds=0)
        ceilings = {name: amount / min(walls[name]) for name, (_, amount) in probes.items()}
        row = {
            "case": case,
            "moved": moved,
            "flops": flops,
            "ceilings": ceilings,
            "rounds": rounds,
            "us": {},
            "ratio": {},
        }
        for name in calls:
            row["us"][name] = statistics.median(walls[name]) * 1e6
            row["ratio"][name] = statistics.median(
                b / a for a, b in zip(walls[ours], walls[name], strict=True)
            )
        if clock.on_gpu:
            row["device_us"] = {name: statistics.median(devices[name]) * 1e6 for name in calls}
        floor = max(moved / ceilings["bandwidth"], flops / ceilings["matmul"])
        row["share"] = floor / (row.get("device_us", row["us"])[ours] * 1e-6)
        benchmark.extra_info.update(row)
        _TABLE.append(row)
        return row

    return run


def pytest_terminal_summary(terminalreporter, config):
    if not _TABLE:
        return
    terminalreporter.section("paired medians, microseconds")
    for row in _TABLE:
        times = "  ".join(f"{name} {value:.0f}" for name, value in row["us"].items())
        ratios = "  ".join(f"{name} {value:.2f}x" for name, value in list(row["ratio"].items())[1:])
        device_times = "  ".join(f"{name} {value:.0f}" for name, value in row.get("device_us", {}).items())
        device = f"device: {device_times} | " if device_times else ""
        terminalreporter.write_line(f"{row['case']:<34} {times} | {ratios} | {device}{row['share']:.0%}")
    if path := config.getoption("--results"):
        write(path, _TABLE)
