"""The command as a person runs it: results on stdout, one line on stderr for a mistake, and the right exit code."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT, SAMPLE, SHARED

import nanoemox


def run(*arguments, **environment):
    command = [sys.executable, "-m", "nanoemox.cli", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_help_and_version():
    for arguments in (["--help"], ["run", "--help"], ["info", "--help"], ["convert", "--help"]):
        out = run(*arguments)
        assert out.returncode == 0 and "usage: nanoemox" in out.stdout and out.stderr == ""
    assert run("--version").stdout.strip() == f"nanoemox {nanoemox.__version__}"


@pytest.mark.parametrize("task", ["mer", "erg"])
def test_json(task):
    out = run("run", SAMPLE, "--task", task, "--json", "--max-new-tokens", 12, "--subtitle", "So it goes.")
    assert out.returncode == 0, out.stderr
    reply = json.loads(out.stdout)
    assert list(reply) == [
        "schema", "source", "task", "text", "labels", "reply", "chain", "tokens", "finish", "modalities", "gates",
        "face_attention", "seconds", "model",
    ]  # fmt: skip
    assert reply["schema"] == 1 and reply["task"] == task and reply["source"] == str(SAMPLE)
    assert sum(reply["gates"]) == pytest.approx(1, abs=1e-5)
    assert reply["modalities"] == {"used": ["frames", "face", "audio", "subtitle"], "absent": []}
    assert [[[len(q) for q in head] for head in reply["face_attention"]]] == [[[8] * 4] * 4]
    assert set(reply["seconds"]) == {"read", "encode", "prefill", "decode"}
    assert set(reply["model"]) == {"name", "sha256", "dtype", "device", "fast", "quantize"}
    digest = subprocess.run(
        ["sha256sum", ROOT / "nanoemox/demo/model.safetensors"], capture_output=True, text=True
    )
    assert reply["model"]["sha256"] == digest.stdout.split()[0]
    assert len(out.stderr.splitlines()) == 1 and "drawn faces" in out.stderr


def test_all_tasks_and_plain_text(tmp_path):
    out = run("run", "--task", "all", "--max-new-tokens", 2)
    assert [reply["task"] for reply in json.loads(out.stdout)] == [
        "msa",
        "mer",
        "ov-mer",
        "eri",
        "mir",
        "erg",
    ]
    out = run("run", SAMPLE, "--max-new-tokens", 4, "--no-fast", "--dtype", "float32")
    clip = nanoemox.read_clip(SAMPLE)
    want = nanoemox.load("demo", fast=False, dtype="float32", device="cpu").answer(clip, max_new_tokens=4)
    assert out.stdout.startswith(f"{want.text}\n")


def test_info():
    out = run("info", "--json")
    info = json.loads(out.stdout)
    assert info["model"] == "demo" and out.returncode == 0
    assert info["fast"]["vision"] == info["fast"]["video_branch"] == info["fast"]["audio_branch"] == "fast"
    assert info["parameters"] == sum(info["parameters_by_part"].values()) > 1e6
    assert "vision: fast" in run("info").stdout and "vision: reference" in run("info", "--no-fast").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fly"], 2, "fly"),
        (["run", "--colour", "red"], 2, "--colour"),
        (["run", SAMPLE, "--task", "joy"], 2, "'joy' does not exist: use msa, mer"),
        (["run", SAMPLE, "--dtype", "float16"], 2, "float16 overflows"),
        (["run", SAMPLE, "--dtype", "int3"], 2, "int3"),
        (["run", SAMPLE, "--device", "abacus"], 2, "abacus"),
        (["run", SAMPLE, "--quantize", "int3"], 2, "use int8 or int4"),
        (["run", SAMPLE, "--quantize", "int8", "--no-fast"], 2, "accelerated form"),
        (["run", SAMPLE, "--temperature", "-1"], 2, "temperature"),
        (["run", SAMPLE, "--task", "all", "--top-k", "-5"], 2, "top_k"),
        (["run", ""], 1, "no such file"),
        (["run", SAMPLE, "--max-new-tokens", "0"], 2, "max-new-tokens"),
        (["run", SAMPLE, "--start", "3", "--end", "2"], 2, "start 3.0 and end 2.0"),
        (["run", SAMPLE, "--task", "eri", "--labels", "a,b"], 2, "--labels"),
        (["run", SAMPLE, "--labels", ","], 2, "labels must be"),
        (["run", SAMPLE, "--task", "all", "--question", "Q"], 2, "--task all"),
        (["run", "nothing.mp4"], 1, "nothing.mp4: no such file"),
        (["run", ROOT], 1, "not a file"),
        (["run", SAMPLE, "--subtitle", "nothing.srt"], 1, "nothing.srt: no such file"),
        (["run", SAMPLE, "--subtitle", "word " * 9000], 1, "shorten the subtitle"),
        (["run", SAMPLE, "--model", "nothing"], 4, "nothing: no such folder"),
        (["run", SAMPLE, "--model", "some/one"], 4, "some/one"),
        (["run", SAMPLE, "--model", ROOT / "tests"], 4, "no config.json"),
        (["info", "--model", "nothing"], 4, "nothing"),
        (["convert", "--checkpoint", "x.pth", "--out", "y"], 2, "--components"),
        (["convert", "--checkpoint", "x.pth", "--components", "z", "--out", "y"], 4, "z: no such folder"),
    ],
)
def test_a_mistake_is_one_line(arguments, code, said, tmp_path):
    out = run(*arguments)
    lines = [line for line in out.stderr.splitlines() if "drawn faces" not in line]
    assert out.returncode == code and out.stdout == "", out.stderr
    assert len(lines) == 1 and said in lines[0] and lines[0].startswith("nanoemox"), out.stderr


def test_any_locale_and_a_closed_pipe():
    out = run(
        "run", SAMPLE, "--subtitle", "悲しい 😢", "--max-new-tokens", 2, "--json", LC_ALL="C", PYTHONUTF8="0"
    )
    assert out.returncode == 0 and json.loads(out.stdout)
    command = f"{sys.executable} -m nanoemox.cli run --max-new-tokens 2 | true"
    closed = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in closed.stderr


@pytest.mark.skipif(not (SHARED / "media").is_dir(), reason="the sample media are not here")
@pytest.mark.parametrize("name", ["talking_face.mp4", "cartoon.mp4"])
def test_real_clips(name):
    out = run("run", SHARED / "media" / name, "--task", "erg", "--json", "--max-new-tokens", 24)
    reply = json.loads(out.stdout)
    assert out.returncode == 0 and sum(reply["gates"]) == pytest.approx(1, abs=1e-5)
    assert reply["modalities"]["used"] == ["frames", "face", "audio"]
