"""What only whole processes can show: kill -9 at any moment, and two processes that train as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
from paths import ROOT
from safetensors.torch import load_file
from tiny_training import Reader
from two_run import setting

from nanoemox.train.log import rows
from nanoemox.train.run import train
from nanoemox.train.stages import P2E
from nanoemox.weights import random_bundle

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "OMP_NUM_THREADS": "1"}


def losses(folder):
    return [row["loss"] for row in rows(folder / "log.jsonl")]


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def test_killed_in_every_stage_and_resumed(bundle, tmp_path):
    killed = json.loads(run(HERE / "kill_run.py", tmp_path, bundle, os.environ.get("KILL_SEED", "0")))
    assert all(where["killed"] for where in killed.values()), killed
    for stage in P2E:
        out, whole = tmp_path / "out" / stage, tmp_path / "whole" / stage
        assert len(losses(whole)) == 8 and losses(out) == losses(whole), (stage, killed)
        assert not [name for name in os.listdir(out) if name.startswith(".")]
        a, b = (load_file(path / "checkpoint-00000008" / "optimizer.safetensors") for path in (out, whole))
        assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
    a, b = ((tmp_path / name / "bundle" / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert a == b


def test_two_processes_train_as_one(tmp_path):
    bundle = random_bundle(tiny_training.tiny(dropout=0.0), tmp_path / "still", dtype="float32")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*torchrun, HERE / "two_run.py", tmp_path, bundle)
    train(*setting(tmp_path / "one", bundle, 4), Reader())
    for stage in P2E:
        single, two, sharded = (losses(tmp_path / name / "out" / stage) for name in ("one", "two", "sharded"))
        assert len(single) == 6 and single == pytest.approx(two, rel=1e-5), stage
        assert single == pytest.approx(sharded, rel=1e-5), stage
    single, sharded = (
        load_file(tmp_path / name / "out" / "bundle" / "model.safetensors") for name in ("one", "sharded")
    )
    assert {name: value.shape for name, value in single.items()} == {
        name: v.shape for name, v in sharded.items()
    }
    skipped = [list(rows(file)) for file in sorted((tmp_path / "two" / "out" / "1-2").glob("skipped*"))]
    alone = list(rows(tmp_path / "one" / "out" / "1-2" / "skipped.jsonl"))
    assert sum(map(len, skipped)) == len(alone) > 0
