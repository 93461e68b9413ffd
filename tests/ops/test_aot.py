"""Every kernel compiled for the target GPUs without one, in a process of its own: the interpreter cannot share it."""

import json
import os
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


def test_every_kernel_compiles_for_every_target_without_spills(rows):
    names = {row["kernel"] for row in rows}
    assert len(rows) == len(names) * len(ARCHITECTURES) and len(names) >= 7
    for row in rows:
        print({key: row[key] for key in ("kernel", "arch", "registers", "shared", "occupancy")})
        assert row["spills"] == 0, row


# Planned share of an SM's warps: tiles live in shared memory and hide latency by asynchronous copies, not by warps.
PLANNED = dict.fromkeys(
    ["xattn hidden", "xattn tokens", "fusion_attend", "fusion_last", "fusion_gate", "fusion_token"], 0.2
)
# Registers: tiles of sums are large, so that operands are few; a bias stays for several windows, the next is coming.
WIDE = dict.fromkeys(["time_conv", "time_conv_wide", "time_conv_one"], 192)
WIDE |= {"window_attn": 168, "window_attn shifted": 168}
WIDE |= {"attn vision": 144, "attn audio": 144}  # 128 with one Triton, 138 with another
PLANNED |= dict.fromkeys(WIDE, 0.15) | dict.fromkeys(["attn vision", "attn audio"], 0.25)
# Loads of 16 bytes at least, where they are not three: what else is read is small, and scattered or read in less.
FEW_LOADS = {
    "xattn_context": 2,
    "gelu_": 2,
    "quick_gelu_": 2,
    "norm_act": 2,
    "norm_act patches": 2,
    "conv_norm_act": 0,
}


def test_resources_on_the_4090(rows):
    for row in (row for row in rows if row["arch"] == "sm_89"):
        assert (
            row["shared"] <= 99 * 1024
            and row["registers"] <= WIDE.get(row["kernel"], 128)
            and row["occupancy"] >= PLANNED.get(row["kernel"], 0.4)
        ), row
        # The streaming operands come in 16-byte loads.
        assert row["wide_loads"] >= FEW_LOADS.get(row["kernel"], 3), row
        assert row["floor_us"] == pytest.approx(row["moved"] / 1008e9 * 1e6)


def test_occupancy():
    assert occupancy("sm_89", 32, 0, 4) == 1.0  # 12 blocks of 128 threads
    assert occupancy("sm_89", 128, 0, 4) == pytest.approx(4 * 4 * 32 / 1536)  # registers allow 4 blocks
    assert occupancy("sm_89", 32, 49_000, 4) == pytest.approx(2 * 4 * 32 / 1536)  # shared memory allows 2
