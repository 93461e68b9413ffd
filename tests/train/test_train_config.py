"""Configs: numbers as YAML writes them, and a message for everything else."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from paths import ROOT, SHARED
from tiny_training import config, stages

from nanoemox.errors import UsageError
from nanoemox.train.config import SHIPPED, config_from, read_config
from nanoemox.train.schedule import Schedule


def values(**changes):
    return {"datasets": {"a": {"format": "manifest"}}, "stages": everything()} | changes


def everything():
    out = stages()
    for stage in out.values():
        stage["data"] = ["a"]
    return out


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.yaml")))
def test_shipped_configs_read(name):
    assert read_config(name).stages["1-1"].data


def test_numbers_that_yaml_reads_as_strings(tmp_path):
    text = yaml.safe_dump(values()).replace("init_lr: 0.003", "init_lr: 3e-4") + "weight_decay: 1e-2\n"
    (tmp_path / "c.yaml").write_text(text)
    assert yaml.safe_load(text)["weight_decay"] == "1e-2"  # what PyYAML makes of it
    got = read_config(tmp_path / "c.yaml", out=str(tmp_path), order=None)
    assert got.weight_decay == 0.01 and got.stages["3"].init_lr == 3e-4 and got.out == str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, r"unknown key learning_rate; known are accumulate, batch, betas"),
        ({"model": {"folder": "x"}}, r"unknown key model.folder; known are adapters, bundle"),
        (
            {"datasets": {"a": {"format": "manifest", "path": "x"}}},
            r"unknown key datasets.a.path; known are format",
        ),
        ({"datasets": {"a": {"root": "x"}}}, r"datasets.a.format is missing"),
        ({"batch": "three"}, r"batch must be int, got 'three'"),
        ({"batch": 0}, r"batch must be at least 1, got 0"),
        ({"clip_norm": "much"}, r"clip_norm must be a number, got 'much'"),
        ({"clip_norm": ".nan"}, r"clip_norm must be a number, got '.nan'"),
        ({"keep_epochs": 1}, r"keep_epochs must be bool, got 1"),
        ({"precision": "float16"}, r"precision 'float16' does not exist: use auto, float32, bfloat16"),
        ({"stages": {"3": everything()["3"]}}, r"stages: '1-1' is missing"),
        ({"stages": {}}, r"stages: '1-1' is missing"),
        ({"stages": {"a": everything()["2"] | {"name": "b"}}}, r"stages.a.name is 'b', must be left out"),
        ({"stages": {"../a": everything()["2"]}}, r"stages.\.\./a: a stage's name is a folder's"),
        (
            {"stages": everything() | {"2": everything()["2"] | {"lr": 1}}},
            r"unknown key stages.2.lr; known are data",
        ),
        (
            {"stages": everything() | {"2": everything()["2"] | {"data": ["b"]}}},
            r"data set 'b' is not one of a",
        ),
        (
            {"stages": everything() | {"2": everything()["2"] | {"data": "a"}}},
            r"stages.2.data must be a list",
        ),
        ({"max_bad_share": 2}, r"max_bad_share 2.0 is not in \[0, 1\]"),
        ({"betas": [0.9]}, r"betas must be two numbers"),
    ],
)
def test_wrong_keys(changes, message):
    with pytest.raises(UsageError, match=message):
        config_from(values(**changes))


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(UsageError, match="no such file; shipped configs are"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(UsageError, match=r"a.yaml, line 2: not valid YAML"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match=r"b.yaml: must be a mapping"):
        read_config(tmp_path / "b.yaml")


def test_the_schedule_of_a_stage(tmp_path):
    stage = config(tmp_path, tmp_path).stages["1-1"]
    rates = [stage.schedule.rate(*divmod(t, stage.steps)) for t in range(stage.total)]
    assert rates[0] == 1e-5 < rates[1] < rates[2] and rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.skipif(not (SHARED / "golden" / "curriculum").is_dir(), reason="needs the full fixtures")
def test_schedule_of_the_paper_is_the_golden_one():
    golden = json.loads((SHARED / "golden" / "curriculum" / "lr_cases.json").read_text())
    paper = read_config("paper").stages
    names = {"phase1_1": "1-1", "phase1_2": "1-2", "phase2": "2", "phase3": "3"}
    for case in golden["cases"]:
        stage = paper[names[case["phase"]]]
        legacy = Schedule(**vars(stage.schedule) | {"legacy_epoch_offset": min(case["epoch"], 1)})
        got = legacy.rate(case["epoch"] - legacy.legacy_epoch_offset, case["step"])
        assert got == pytest.approx(case["lr"], rel=1e-12), case


def test_the_command(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "nanoemox.cli", "train", *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    done = run("--config", "paper", "--dry-run", "--stage", "1-1", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["trainable"] == 20_905_472, done.stderr
    (tmp_path / "bad.yaml").write_text("stagess: 1\n")
    done = run("--config", "bad.yaml")
    assert (
        done.returncode == 2
        and "unknown key stagess; known are" in done.stderr
        and done.stderr.count("\n") == 1
    )
    done = run("--config", "paper")
    assert done.returncode == 2 and "data set M3ED: there is no data/M3ED; --data" in done.stderr, done.stderr
