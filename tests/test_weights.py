"""Bundles: what is saved comes back, and only what belongs is loaded."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file, save_file

import nanoemox
from nanoemox.bundle.find import DEMO
from nanoemox.config import NanoEmoXConfig
from nanoemox.errors import CheckpointError, UsageError
from nanoemox.weights import random_bundle

WEIGHTS = "model.safetensors"


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / file, folder)
    return folder


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def outputs(model, clip):
    ids = torch.tensor([model.prompt_ids(clip)])
    with torch.inference_mode():
        return model.language.start(model.splice(ids, model.encode(clip)))[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_load_are_identical(dtype, sample, tmp_path):
    model = nanoemox.load("demo", dtype=dtype, device="cpu")
    model.save(tmp_path / "a")
    again = nanoemox.load(tmp_path / "a", dtype=dtype, device="cpu")
    assert torch.equal(outputs(model, sample), outputs(again, sample))
    again.save(tmp_path / "a")  # over its own source
    third = nanoemox.load(tmp_path / "a", dtype=dtype, device="cpu")
    assert torch.equal(outputs(model, sample), outputs(third, sample))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_dtype_changes_on_load(sample):
    dtypes = (torch.float32, torch.bfloat16)
    wide, narrow = (nanoemox.load("demo", fast=False, dtype=dtype, device="cpu") for dtype in dtypes)
    for (name, a), (_, b) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        assert a.dtype == torch.float32 and b.dtype == torch.bfloat16 and torch.equal(a, b.float()), name


def test_nothing_is_left_on_meta_and_heads_are_tied():
    model = nanoemox.load("demo", device="cpu")
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    base = nanoemox.load("demo", device="cpu", fast=False).language.base
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("video_proj.bias"), "missing: video_proj.bias"),
        (lambda t: t.update(extra=torch.zeros(2)), "unknown: extra"),
        (
            lambda t: t.update({"video_proj.bias": torch.zeros(3)}),
            r"video_proj.bias is \[3\] instead of \[192\]",
        ),
        (
            lambda t: t.update({"video_proj.bias": torch.zeros(192, dtype=torch.int32)}),
            "not float32.*video_proj.bias",
        ),
        (lambda t: t.update(renamed=t.pop("video_proj.bias")), "missing: video_proj.bias; unknown: renamed"),
    ],
)
def test_wrong_keys_are_named(bundle, change, match):
    rewrite(bundle, change)
    with pytest.raises(CheckpointError, match=match):
        nanoemox.load(bundle)


def test_two_files_make_one_model(bundle, sample):
    tensors = load_file(bundle / WEIGHTS)
    (bundle / WEIGHTS).unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, bundle / "a.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, bundle / "b.safetensors")
    expected = nanoemox.load("demo", dtype="float32", device="cpu")
    got = nanoemox.load(bundle, dtype="float32", device="cpu")
    assert torch.equal(outputs(expected, sample), outputs(got, sample))
    save_file({names[0]: tensors[names[0]]}, bundle / "c.safetensors")
    with pytest.raises(CheckpointError, match=f"{names[0]} is also in a.safetensors"):
        nanoemox.load(bundle)


def test_broken_bundles(bundle, tmp_path):
    def refused(match):
        with pytest.raises(CheckpointError, match=match):
            nanoemox.load(bundle)

    whole = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    refused("model.safetensors.*cut off")
    (bundle / WEIGHTS).unlink()
    (bundle / "weights.pth").write_bytes(b"x")
    refused("no \\*.safetensors")
    (bundle / WEIGHTS).write_bytes(whole)
    config = json.loads((bundle / "config.json").read_text())
    for broken, match in (
        ({**config, "wings": 2}, "unknown key wings; known are"),
        ({**config, "fusion": {**config["fusion"], "heads": "four"}}, "fusion.heads must be int"),
        ({**config, "vision": {**config["vision"], "taps": [1, 2, 99]}}, "reach past the 6 layers"),
        ([], "not a JSON object"),
    ):
        (bundle / "config.json").write_text(json.dumps(broken))
        refused(f"config.json.*{match}")
    (bundle / "config.json").unlink()
    refused("no config.json")
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "tokenizer.json").write_text("{}")
    refused("tokenizer files cannot be read")
    (bundle / "tokenizer.json").unlink()
    refused("tokenizer.json: missing")


def test_sources_that_are_no_bundle(tmp_path):
    for source, match in (
        (tmp_path, "no config.json"),
        (tmp_path / "nothing", "no such folder"),
        (DEMO / WEIGHTS, "a bundle is a folder"),
        ("someone/something", "neither a folder nor"),
    ):
        with pytest.raises(CheckpointError, match=match):
            nanoemox.load(source)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "float16"}, "overflows"),
        ({"dtype": torch.float16}, "overflows"),
        ({"dtype": "int3"}, "'int3'"),
        ({"device": "abacus"}, "'abacus'"),
        ({"quantize": "int3"}, "quantize 'int3' does not exist: use int8 or int4"),
        ({"quantize": "int8", "fast": False}, "int8 weights need the accelerated form"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(UsageError, match=match):
        nanoemox.load("demo", **options)
    with pytest.raises(UsageError, match="nano"):
        NanoEmoXConfig.preset("nano")


def test_random_bundle_repeats_with_its_seed(tmp_path, sample):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        random_bundle("demo", tmp_path / name, seed)
    a, b, c = (load_file(tmp_path / name / WEIGHTS) for name in "abc")
    assert all(torch.equal(a[n], b[n]) for n in a) and not torch.equal(
        a["video_proj.weight"], c["video_proj.weight"]
    )
    model = nanoemox.load(tmp_path / "a", dtype="float32", device="cpu")
    encoded = model.encode(sample)
    for tensor in (encoded.visual, encoded.speech, encoded.face, encoded.fusion, *encoded.features.values()):
        assert torch.isfinite(tensor).all() and 1e-2 < tensor.std() < 1e2


def test_a_failed_save_leaves_the_old_bundle(bundle, monkeypatch, tmp_path):
    model = nanoemox.load(bundle, device="cpu")
    before = (bundle / WEIGHTS).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanoemox.bundle.tensors.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        model.save(bundle)
    assert (bundle / WEIGHTS).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    for name, files in (("a", {"config.json": "{}"}), ("b", {"config.json": None, "notes.txt": "mine"})):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text((DEMO / file).read_text() if text is None else text)
        with pytest.raises(CheckpointError, match="is not a bundle"):
            random_bundle("demo", folder)
        assert sorted(p.name for p in folder.iterdir()) == sorted(files)


def test_an_interrupted_replacement_brings_the_old_bundle_back(bundle, monkeypatch, tmp_path):
    rename, before = Path.rename, (bundle / WEIGHTS).read_bytes()

    def interrupted(self, target):
        if Path(target) == bundle and self.name != "old":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        random_bundle("demo", bundle, 3)
    assert (bundle / WEIGHTS).read_bytes() == before


def test_models_load_in_threads():
    models, errors = [], []

    def load():
        try:
            models.append(nanoemox.load("demo", dtype="float32", device="cpu"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(models) == 4 and not torch.nn.Linear(2, 2).weight.is_meta


def test_mixed_precision_is_saved_as_it_is(tmp_path):
    model = nanoemox.load("demo", fast=False, dtype="bfloat16", device="cpu")
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float() + 1e-5
    model.save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    assert {tensor.dtype for name, tensor in tensors.items() if ".lora_" in name} == {torch.float32}
    assert tensors["video_proj.weight"].dtype == torch.bfloat16


PEAK = """
import sys, torch, nanoemox
from nanoemox.model import NanoEmoX
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024
import peft
with torch.device("meta"):
    NanoEmoX(nanoemox.NanoEmoXConfig.preset("demo"))
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = nanoemox.load(sys.argv[1], dtype=sys.argv[2], device="cpu")
language = model.language
matrices = [m.data for layer in language.layers for m in layer[:7]]
for p in [*model.parameters(), *matrices, language.embedding]: p.sum()
print((status("VmHWM") - before) / (sum(p.nbytes for p in model.parameters()) + language.nbytes))
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_holds_the_weights_once(dtype, tmp_path):
    from dataclasses import replace

    demo = NanoEmoXConfig.preset("demo")
    language = replace(
        demo.language, hidden_size=1024, heads=8, head_dim=128, mlp_size=4096, layers=6, vocab_size=60000
    )
    random_bundle(replace(demo, language=language), tmp_path / "wide")
    run = [sys.executable, "-c", PEAK, str(tmp_path / "wide"), dtype]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(out.stdout) < 1.15
