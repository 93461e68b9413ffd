"""benchmarks/gpu_check.py and the sm_89 test of tests/ops, as far as they run without a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from common import cases as ops
from common import roofline
from gpu import checks, ncu, speed
from gpu.run import Run
from gpu_check import table

SCRIPT = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")]


def run(*command, **env):
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment = inherited | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_dry_run_lists_every_step_and_needs_no_gpu():
    done = run(*SCRIPT, "--dry-run", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    for word in (
        "tests/ops",
        "model.encode",
        "memcheck",
        "ceilings",
        "torch.compile",
        "CUDA graph",
        "stalls",
    ):
        assert word in done.stdout
    assert "needs a GPU" in run(*SCRIPT, CUDA_VISIBLE_DEVICES="").stderr


def test_work_of_the_encoders():
    """FLOP of one clip at published size, and the floor from the larger of FLOP and bytes."""
    assert [round(f(1) / 1e9) for f in (roofline.clip, roofline.hubert, roofline.swin)] == [1197, 579, 247]
    assert roofline.clip(16) == 16 * roofline.clip(1)
    assert roofline.floor(165e12, 0, {"matmul": 165e12, "bandwidth": 1e12}) == 1
    assert roofline.floor(1, 2e12, {"matmul": 165e12, "bandwidth": 1e12}) == 2


def test_results_are_on_disk_after_every_row_and_in_the_table(tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    origin = {"machine": "GPU", "torch": "2", "triton": "3", "driver": "580", "commit": "abc"}
    a_run = Run(path, origin, 9, tmp_path)
    a_run.add({"step": "tests", "name": "tests/ops", "ok": True, "passed": 9, "failed": 0, "skipped": 1})
    assert json.loads(path.read_text())["correct"] and a_run.correct
    a_run.add({"step": "sanitizer", "name": "racecheck", "left_out": "no compute-sanitizer here"})
    a_run.ceilings = {"bandwidth": 3e12, "matmul": 8e14}
    times = {"call_us": {"ours": 20.0}, "device_us": {"ours": 4.0}, "errors": {"compiled": "no time left"}}
    a_run.add(
        {"step": "op", "name": "expert_gate", "batch": 1, "ok": False, "floor_us": 2.0, "share": 0.5, **times}
    )
    times = {"ms": {"fast": 3.0}, "over_floor": {"fast": 2.0}, "peak_bytes": {"fast": 4e6}, "kernels": {}}
    a_run.add({"step": "encoder", "name": "vision", "batch": 1, "floor_ms": 1.5, **times})
    results = json.loads(path.read_text())
    assert results["from"] == origin
    assert not results["correct"] and len(results["rows"]) == 4 and results["ceilings"]
    text = "\n".join(table(a_run))
    for expected in (
        "checks: 1 of 2 passed", "FAILED op expert_gate", "EVERY TIME", "9 passed", "3000 GB/s",
        "ours 4.0 (20)",
        "compiled: no time left", "left out: sanitizer racecheck: no compute", "fast 3.00 (2.00x) 4 MB",
    ):  # fmt: skip
        assert expected in text, text
    assert "op: expert_gate: FAILED" in capsys.readouterr().out


def test_counts_of_pytest():
    assert checks.counts("..\n2 failed, 30 passed, 4 skipped, 1 warning in 12.34s\n") == {
        "passed": 30, "failed": 2, "skipped": 4,
    }  # fmt: skip
    assert checks.counts("no line at all") == {"passed": 0, "failed": 0, "skipped": 0}


LONG = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"
"0","1","_tap_pool(x)","(8, 4, 1)","gpu__time_duration.sum","ns","5,120"
"0","1","_tap_pool(x)","(8, 4, 1)","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","41.5"
"0","1","_tap_pool(x)","(8, 4, 1)","smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",\
"inst","1.5"
"""
WIDE = """"ID","Kernel Name","Grid Size","gpu__time_duration.sum",\
"dram__throughput.avg.pct_of_peak_sustained_elapsed"
"","","","ns","%"
"0","_tap_pool","(8, 4, 1)","5120","41.5"
"""


@pytest.mark.parametrize("text", [LONG, WIDE], ids=["long", "wide"])
def test_table_of_ncu(text):
    (launch,) = ncu.read(text)
    assert (launch["kernel"], launch["us"], launch["dram_percent"]) == ("_tap_pool", 5.12, 41.5)
    assert launch["occupancy_percent"] is None and next(iter(launch["stalls"])) == (
        "wait" if text is LONG else "barrier"
    )
    assert ncu.read("==ERROR== ERR_NVGPUCTRPERM") == []


def test_ours_is_the_definition_in_every_case():
    with torch.inference_mode():
        for case in ops.cases(2, torch.float32, ops.SMALL, "cpu"):
            got, want = (case.functions[f](*(t.clone() for t in case.inputs)) for f in ("ours", "eager"))
            assert speed.close(got, want) and case.moved > 0 and case.flops > 0, case.name
            assert not speed.close(tuple(t + t.abs().max() for t in got), want)


PACKS = """
import sys
sys.path[:0] = ["tests", "tests/ops"]
import torch
import machine_code, test_gpu
from triton.runtime.jit import JITFunction
import nanoemox_kernels as nk
from nanoemox_kernels.ops.attn.kernel import attn_fwd
from nanoemox_kernels.ops.expert_fusion.kernel import expert_fusion_fwd
from nanoemox_kernels.ops.expert_gate.kernel import expert_gate_fwd
from nanoemox_kernels.ops.feature_taps.kernel import residual_norm_fwd, tap_pool_fwd
from nanoemox_kernels.ops.norm_act.kernel import conv_norm_act_fwd, norm_act_fwd
from nanoemox_kernels.ops.activation.kernel import activation_inplace
from nanoemox_kernels.ops.temporal_xattn.kernel import temporal_xattn_fwd
from nanoemox_kernels.ops.time_conv.kernel import time_conv_fwd
from nanoemox_kernels.ops.window_attn.kernel import window_attn_fwd

def run(kernel, *args, grid, warmup, **named):
    arguments = dict(zip(kernel.arg_names, args)) | named
    compiled, source = machine_code.compile_for(kernel, arguments, 89)
    values = [arguments[name] for name, kind in source.signature.items() if kind != "constexpr"]
    widths = machine_code.entry_widths(compiled.asm["ptx"])
    assert ".target sm_89" in compiled.asm["ptx"] and not compiled.metadata.global_scratch_size
    cells = machine_code.pack(widths, values)
    print(kernel.__name__, len(values), len(cells))

JITFunction.run = run

def inputs(op):
    return test_gpu.OPS[op].make(test_gpu.ODD, torch.bfloat16, "cpu")

expert_gate_fwd(*inputs("expert_gate"), True)
x, *folded = inputs("temporal_xattn")
temporal_xattn_fwd(x, nk.FoldedTemporalXattn(*folded))
a, v, *folded = inputs("expert_fusion")
expert_fusion_fwd(a, v, nk.FoldedExpertFusion(*folded), 8)
residual_norm_fwd(*inputs("feature_taps_")[:4], 1e-5)
out, hidden = inputs("tap_pool_ mean")
tap_pool_fwd(out[:, 1 : 1 + hidden.shape[2]], hidden, 0.25, True)  # a slice that is not aligned
out, hidden = inputs("tap_pool_ mean of a map")
tap_pool_fwd(out[:, : hidden.shape[2]], hidden, 0.25, True)
norm_act_fwd(*inputs("norm_act gelu"), 1e-5, True)
conv_norm_act_fwd(*inputs("conv_norm_act"), 5, 1e-5, True)
activation_inplace(*inputs("quick_gelu_"), True)
(rows,) = inputs("attn")
attn_fwd(*rows.unflatten(-1, (3, 3, 5)).permute(2, 0, 3, 1, 4))
window_attn_fwd(*inputs("window_attn"), 9, 9, 7, 3)
time_conv_fwd(*inputs("time_conv one tap"), 1, 1, 0, 0, True)
"""


def test_every_launch_packs_its_arguments_for_the_sm_89_entry():
    """tests/ops/test_gpu.py passes to the driver a value for every parameter, then the scratch pointers."""
    pytest.importorskip("triton")
    done = run(sys.executable, "-W", "ignore", "-c", PACKS.replace("tests", str(ROOT / "tests")))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    expected = {"_gate_hidden", "_fusion_attend", "_rows_linear", "_residual_norm", "_tap_pool", "_tap_part"}
    expected |= {"_norm_act", "_conv_norm_act", "_activation", "_window_attn", "_time_conv", "_attn"}
    assert expected <= {name for name, *_ in lines}
    assert all(int(values) <= int(cells) <= int(values) + 2 for _, values, cells in lines)


def test_our_kernels_have_names():
    pytest.importorskip("triton")
    folder = str(ROOT / "benchmarks")
    code = f"import sys; sys.path.append({folder!r}); from gpu import ncu; print(ncu.kernel_names())"
    assert "'_fusion_token'" in run(sys.executable, "-W", "ignore", "-c", code).stdout
