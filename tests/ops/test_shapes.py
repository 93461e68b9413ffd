"""The table of shapes: every case runs, every launch setting is asked for as declared, and the tuner covers
them.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from paths import ROOT

from nanoemox_kernels import shapes

sys.path.append(str(ROOT / "benchmarks"))

from gpu import tune

DEFAULT = json.loads((ROOT / "nanoemox_kernels" / "configs" / "default.json").read_text())
KERNELS = {name for name, values in DEFAULT.items() if "num_warps" in values}
CASES = {case.name: case for case in shapes.cases(1, torch.float32, shapes.SMALL, "cpu")}


@torch.inference_mode()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ours_is_the_definition_in_every_case(name, dtype):
    case = next(case for case in shapes.cases(2, dtype, shapes.SMALL, "cpu") if case.name == name)
    ours = case.ours(*(tensor.clone() for tensor in case.inputs))
    definition = case.definition(*(tensor.clone() for tensor in case.inputs))
    assert len(ours) == len(definition) and case.moved > 0 and case.flops > 0
    for got, want in zip(ours, definition, strict=True):
        limit = 1e-4 if dtype == torch.float32 else 2e-2
        assert (got.float() - want.float()).abs().max() <= limit * want.float().abs().max()
    if case.folded is not None:
        for got, want in zip(case.folded(*case.inputs), definition, strict=True):
            assert (got.float() - want.float()).abs().max() <= 2e-2 * want.float().abs().max()


ASKED = """
import json
from importlib import import_module
import torch
from nanoemox_kernels import _tuning, shapes
from nanoemox_kernels.aot import recorded_launches
asked = []
def tuned(kernel):
    asked.append(kernel)
    return _tuning.load("")[kernel]
OPS = "activation attn expert_fusion expert_gate feature_taps norm_act temporal_xattn time_conv window_attn"
for op in OPS.split():
    import_module(f"nanoemox_kernels.ops.{op}.kernel").tuned = tuned
found = {}
for case in shapes.cases(1, torch.bfloat16, device="meta"):
    asked.clear()
    with recorded_launches() as launches:
        case.ours(*case.inputs)
    found[case.name] = [sorted(set(asked)), sorted(case.kernels), len(launches)]
print(json.dumps(found))
"""


def test_cases_declare_the_settings_that_they_ask_for():
    pytest.importorskip("triton")
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = [sys.executable, "-W", "ignore", "-c", ASKED]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == CASES.keys()
    for name, (asked, declared, launches) in found.items():
        # tap_pool_ looks at the settings of a sum in two steps before it decides.
        assert set(declared) <= set(asked) <= {*declared, "tap_part"}, name
        assert launches >= 1
    assert {kernel for _, declared, _ in found.values() for kernel in declared} == KERNELS


def test_the_tuner_has_a_space_and_calls_for_every_kernel():
    assert set(tune.SPACE) == KERNELS
    for kernel, uses in tune.calls("meta").items():
        assert uses, kernel
        names = set(tune.SPACE[kernel])
        assert set(DEFAULT[kernel]) - {"num_stages"} <= names <= {*DEFAULT[kernel], "num_stages"}, kernel
        assert len(list(tune.candidates(kernel))) > 1


def test_the_tuner_keeps_the_best_and_survives_failures():
    settings = {"xattn_context": {"num_warps": 4}}
    times = {4: 100.0, 1: 90.0}

    def clock(call):
        call()
        warps = settings["xattn_context"]["num_warps"]
        if warps not in times:
            raise RuntimeError("out of resource: shared memory")
        return times[warps]

    best, line = tune.tune("xattn_context", settings, [lambda: None], time.monotonic() + 9, clock)
    assert best == settings["xattn_context"] == {"num_warps": 1}
    assert "100.0 -> 90.0 us" in line and "{'num_warps': 2} fails: RuntimeError: out of resource" in line

    def broken():
        raise TypeError("takes 10 arguments but 11 were given")

    settings = {"xattn_context": {"num_warps": 4}}
    best, line = tune.tune("xattn_context", settings, [broken], time.monotonic() + 9, clock)
    assert best == {} and settings == {"xattn_context": {"num_warps": 4}}
    assert "fails with its present setting" in line


def test_settings_are_written_one_a_line(tmp_path):
    tune.write(tmp_path / "gpu.json", {"a": {"num_warps": 1}, "b": {"num_warps": 2}})
    assert (tmp_path / "gpu.json").read_text() == '{\n "a": {"num_warps": 1},\n "b": {"num_warps": 2}\n}\n'
