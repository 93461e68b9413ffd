"""Every kernel compiled for the target GPUs without one, in a process of its own: the interpreter cannot
share it.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

from nanoemox_kernels.aot import ARCHITECTURES, occupancy


@pytest.fixture(scope="module")
def rows():
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = [sys.executable, "-m", "nanoemox_kernels.aot", "--json"]
    return json.loads(
        subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout
    )


def kernel_of(row):
    """The kernel's name, without the case before it and a number behind it."""
    return row["kernel"].partition(": ")[2].split()[0]


KERNELS = {
    "activation", "attn", "conv_norm_act", "fusion_attend", "fusion_hidden", "fusion_project", "fusion_qkv",
    "fusion_token", "gate_combine", "gate_hidden", "norm_act", "residual_norm", "rows_linear", "tap_part",
    "tap_pool", "time_conv", "window_attn", "xattn_context",
}  # fmt: skip


def test_every_kernel_compiles_for_every_target_without_spills(rows):
    names = {row["kernel"] for row in rows}
    assert len(rows) == len(names) * len(ARCHITECTURES) and len(names) >= 35
    assert {kernel_of(row) for row in rows} == KERNELS
    for row in rows:
        print({key: row[key] for key in ("kernel", "arch", "registers", "shared", "occupancy")})
        assert row["spills"] == 0, row


def test_every_kernel_of_the_package_is_compiled():
    """A kernel that no case of shapes.py launches would be compiled by nobody before a user's GPU."""
    launched = set()
    for path in (ROOT / "nanoemox_kernels").glob("ops/*/kernel.py"):
        text = path.read_text()
        defined = set(re.findall(r"^def _(\w+)\(", text, re.M))
        launched |= defined & set(re.findall(r"\b_(\w+)\[", text))
    assert launched == KERNELS


# Planned share of an SM's warps: tiles live in shared memory and hide latency by asynchronous copies, not by
# warps.
PLANNED = {"rows_linear": 0.2, "fusion_attend": 0.2, "fusion_token": 0.2}
# Registers: tiles of sums are large, so that operands are few; a bias stays for several windows, the next is
# coming.
WIDE = {"time_conv": 192, "window_attn": 168}
WIDE |= {"attn": 144}  # 128 with one Triton, 138 with another
PLANNED |= {"time_conv": 0.15, "window_attn": 0.15, "attn": 0.25}
# Loads of 16 bytes at least, where they are not three: what else is read is small, and scattered or read in
# less.
FEW_LOADS = {"xattn_context": 2, "activation": 2, "norm_act": 2, "conv_norm_act": 0}


def test_resources_on_the_4090(rows):
    for row in (row for row in rows if row["arch"] == "sm_89"):
        kernel = kernel_of(row)
        assert row["shared"] <= 99 * 1024, row
        assert row["registers"] <= WIDE.get(kernel, 128), row
        assert row["occupancy"] >= PLANNED.get(kernel, 0.4), row
        # The streaming operands come in 16-byte loads.
        assert row["wide_loads"] >= FEW_LOADS.get(kernel, 3), row
        assert row["floor_us"] == pytest.approx(row["moved"] / 1008e9 * 1e6)


def test_occupancy():
    assert occupancy("sm_89", 32, 0, 4) == 1.0  # 12 blocks of 128 threads
    assert occupancy("sm_89", 128, 0, 4) == pytest.approx(4 * 4 * 32 / 1536)  # registers allow 4 blocks
    assert occupancy("sm_89", 32, 49_000, 4) == pytest.approx(2 * 4 * 32 / 1536)  # shared memory allows 2
