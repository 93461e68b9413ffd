"""The command as a user runs it: results on stdout, one line on stderr for a mistake, and the exit code."""

import json
import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT, SAMPLE, SHARED

import nanoemox
from nanoemox import cli, errors


def run(*arguments, **environment):
    command = [sys.executable, "-m", "nanoemox.cli", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_help_and_version():
    for command in ([], ["run"], ["info"], ["convert"], ["train"], ["data"], ["data", "validate"]):
        out = run(*command, "--help")
        assert out.returncode == 0 and "usage: nanoemox" in out.stdout and out.stderr == ""
        assert "--traceback" in out.stdout and "exit codes: 0 ok, 1 failure, 2 usage, 4 missing" in out.stdout
    assert run("--version").stdout.strip() == f"nanoemox {nanoemox.__version__}"


def test_the_package_runs_as_a_module():
    out = subprocess.run(
        [sys.executable, "-m", "nanoemox", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0 and out.stdout.strip() == f"nanoemox {nanoemox.__version__}"


@pytest.mark.parametrize("task", ["mer", "erg"])
def test_json(task):
    out = run("run", SAMPLE, "--task", task, "--json", "--max-new-tokens", 12, "--subtitle", "So it goes.")
    assert out.returncode == 0, out.stderr
    reply = json.loads(out.stdout)
    assert list(reply) == [
        "schema", "source", "task", "text", "labels", "reply", "chain", "tokens", "finish", "modalities",
        "gates", "face_attention", "seconds", "model",
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
    model = nanoemox.load("demo", fast=False, dtype="float32", device="cpu")
    expected = model.answer(clip, max_new_tokens=4)
    assert out.stdout.startswith(f"{expected.text}\n")


def test_info():
    out = run("info", "--json")
    info = json.loads(out.stdout)
    assert info["model"] == "demo" and out.returncode == 0
    assert info["fast"]["vision"] == info["fast"]["video_branch"] == info["fast"]["audio_branch"] == "fast"
    assert info["parameters"] == sum(info["parameters_by_part"].values()) > 1e6
    assert info["settings"].startswith(("not needed on", "tuned on", "default: none are tuned on"))
    assert "vision: fast" in run("info").stdout and "vision: reference" in run("info", "--no-fast").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
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
def test_a_mistake_is_one_line(arguments, code, message):
    out = run(*arguments)
    lines = [line for line in out.stderr.splitlines() if "drawn faces" not in line]
    assert out.returncode == code and out.stdout == "", out.stderr
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith("nanoemox"), out.stderr


def plant(monkeypatch, error):
    """Makes `nanoemox info` raise an error."""

    def describe(*_, **__):
        raise error

    monkeypatch.setattr("nanoemox.commands.info.describe", describe)


@pytest.fixture
def signals():
    """`main` sets signal handlers, which must not outlive a test."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), ValueError("a b"), KeyError("a b"), TypeError("a b")]
)
def test_a_bug_is_one_line_and_a_traceback_on_request(error, monkeypatch, capsys, signals):
    plant(monkeypatch, error)
    assert cli.main(["info"]) == 1
    out = capsys.readouterr()
    assert out.out == "" and len(out.err.splitlines()) == 1
    assert f"a bug in nanoemox, {type(error).__name__}: " in out.err and "a b" in out.err
    assert "--traceback" in out.err
    for arguments in (["--traceback", "info"], ["info", "--traceback"]):
        assert cli.main(arguments) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err and "raise error" in err and "a bug in nanoemox" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("a\n b"), 2, "a b"),
        (errors.CheckpointError("a"), 4, "a"),
        (errors.MediaError("a"), 1, "a"),
        (errors.InputError("a"), 1, "a"),
        (errors.DataError("a"), 1, "a"),
        (errors.TrainingError("a"), 1, "a"),
        (errors.NanoEmoXError("a"), 1, "a"),
        (MemoryError(), 1, "not enough memory for this model; choose a smaller one or --dtype bfloat16"),
        (OSError(28, "No space left on device", "x.json"), 1, "x.json: No space left on device"),
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied"),
        (OSError("no number"), 1, "no number"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line_with_its_exit_code(error, code, line, monkeypatch, capsys, signals):
    plant(monkeypatch, error)
    assert cli.main(["info"]) == code
    assert capsys.readouterr().err == f"nanoemox: {line}\n"
    assert cli.main(["info", "--traceback"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_memory_that_torch_cannot_get_is_no_bug(monkeypatch, capsys, signals):
    import torch

    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ):
        plant(monkeypatch, error)
        assert cli.main(["info"]) == 1
        assert "not enough memory" in capsys.readouterr().err


def test_every_error_of_ours_is_a_value_error():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) == 7 and all(issubclass(kind, errors.NanoEmoXError) for kind in classes)
    assert issubclass(errors.NanoEmoXError, ValueError)


def test_any_locale_and_a_closed_pipe():
    subtitle = "悲しい 😢"
    short = ("--max-new-tokens", 2, "--json")
    out = run("run", SAMPLE, "--subtitle", subtitle, *short, LC_ALL="C", PYTHONUTF8="0")
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
