"""Whole runs at tiny size: what is trained, what is written, and what happens when something goes wrong."""

import errno
import json
import os
import signal
from dataclasses import replace

import official
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import FULL, Reader, config, datasets

import nanoemox
from nanoemox.bundle.official_names import targets
from nanoemox.errors import CheckpointError, MediaError, UsageError
from nanoemox.train import checkpoint
from nanoemox.train.config import ModelOptions
from nanoemox.train.initial_model import build_model, trainable_names
from nanoemox.train.log import rows
from nanoemox.train.loop import Interrupted
from nanoemox.train.run import train
from nanoemox.train.stages import ORDERS, P2E, Joint, Source, group_of


def losses(folder):
    return [row["loss"] for row in rows(folder / "log.jsonl")]


def of_stages(made, **changes):
    return replace(made, stages={name: replace(stage, **changes) for name, stage in made.stages.items()})


@pytest.fixture(scope="module")
def run(bundle, tmp_path_factory):
    """A finished p2e run: its config, folder and reader."""
    folder = tmp_path_factory.mktemp("run")
    made, reader = config(folder, bundle, cache=str(folder / "cache"), keep_epochs=True), Reader()
    out = train(made, datasets(folder, CAER={"bad": {3}}), reader)
    assert out == folder / "out" / "bundle"
    return made, folder, reader


def test_what_a_run_leaves(run):
    made, folder, _ = run
    for name in P2E:
        stage = folder / "out" / name
        assert sorted(os.listdir(stage))[:3] == ["checkpoint-00000003", "checkpoint-00000006", "curves.png"]
        assert sorted(os.listdir(stage / "checkpoint-00000006")) == [
            "optimizer.safetensors", "state.json", "trainable.safetensors"
        ]  # fmt: skip
        assert "optimizer.safetensors" not in os.listdir(stage / "checkpoint-00000003")  # an epoch's weights
        assert [row["step"] for row in rows(stage / "log.jsonl")] == list(range(6))
        assert all(torch.tensor(losses(stage)).isfinite())
        assert (stage / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        mixture = json.loads((stage / "mixture.json").read_text())
        assert sum(mixture["drawn"].values()) == 12 and sum(mixture["intended"].values()) == pytest.approx(
            100
        )
        state = json.loads((stage / "checkpoint-00000006" / "state.json").read_text())
        assert state["done"] and sum(count for *_, count in state["sampler"]["counts"]) == 12
    (row,) = {row["sample"] for row in rows(folder / "out" / "1-2" / "skipped.jsonl")} or {"CAER_3"}
    assert row == "CAER_3"


def test_each_stage_changes_its_own_tensors_and_no_others(run, bundle):
    made, folder, _ = run
    model = build_model(made.model, folder / "base", dtype=torch.float32, seed=made.seed)
    before = {name: model.get_parameter(key).clone() for name, key in trainable_names(model).items()}
    for name, stage in made.stages.items():
        after = load_file(folder / "out" / name / "checkpoint-00000006" / "trainable.safetensors")
        assert set(after) == set(trainable_names(model, stage.train))
        start = dict(before)
        for earlier in stage.init:
            start |= load_file(folder / "out" / earlier / "checkpoint-00000006" / "trainable.safetensors")
        idle = {"video_frame_position_embedding.weight"}  # rows past the eighth frame have no gradient
        changed = {key for key, value in after.items() if not torch.equal(value, start[key])}
        assert set(after) - changed <= idle, name


def test_the_bundle_is_the_base_with_what_was_trained(run, bundle):
    _, folder, _ = run
    base, out = (load_file(path / "model.safetensors") for path in (bundle, folder / "out" / "bundle"))
    trained = load_file(folder / "out" / "3" / "checkpoint-00000006" / "trainable.safetensors")
    assert set(base) == set(out)
    for name, value in out.items():
        assert torch.equal(value, trained.get(name, base[name])), name
    model = nanoemox.load(folder / "out" / "bundle", device="cpu", dtype="float32")
    assert model.answer(nanoemox.Clip(subtitle="Well."), "mer", max_new_tokens=2).tokens <= 2


def test_the_cache_spares_the_reader_and_changes_nothing(run, bundle, tmp_path):
    made, folder, reader = run
    clips = len(list((folder / "media").iterdir()))
    assert reader.read <= 2 * clips  # a clip at most twice: once for its sound in 1-1, once for its pictures
    again = Reader()
    train(replace(made, out=str(tmp_path / "out")), datasets(folder, CAER={"bad": {3}}), again)
    assert again.read <= 4  # the broken clip is tried anew, nothing else
    plain = Reader()
    train(replace(made, out=str(tmp_path / "plain"), cache=None), datasets(folder, CAER={"bad": {3}}), plain)
    assert plain.read > 40
    for name in P2E:
        assert (
            losses(tmp_path / "out" / name)
            == losses(tmp_path / "plain" / name)
            == losses(folder / "out" / name)
        )


def test_reverse_chains_its_stages(run, tmp_path):
    made, folder, _ = run
    train(replace(made, out=str(tmp_path / "out"), order="reverse"), datasets(folder), Reader())
    for name in P2E:
        assert len(losses(tmp_path / "out" / name)) == 6
    weights = {
        name: load_file(tmp_path / "out" / name / "checkpoint-00000006" / "trainable.safetensors")
        for name in P2E
    }
    bundle = load_file(tmp_path / "out" / "bundle" / "model.safetensors")
    expected = weights["3"] | weights["2"] | weights["1-2"] | weights["1-1"]
    assert all(torch.equal(bundle[name], value) for name, value in expected.items())
    assert any(".lora_B." in name and value.any() for name, value in expected.items())


@pytest.mark.parametrize("variant", ["phase3_data", "all_data"])
def test_joint(run, tmp_path, variant):
    made, folder, _ = run
    joint = replace(
        made, out=str(tmp_path / "out"), order="joint", joint=Joint(variant=variant, match_steps=True)
    )
    train(joint, datasets(folder), Reader())
    assert len(losses(tmp_path / "out" / "joint")) == sum(stage.total for stage in made.stages.values())


def test_stages_one_by_one(run, tmp_path):
    made, folder, _ = run
    changed, sets = replace(made, out=str(tmp_path / "out")), datasets(folder, CAER={"bad": {3}})
    with pytest.raises(CheckpointError, match="stage 2 starts from 1-1, which is not finished there"):
        train(changed, sets, Reader(), stage="2")
    for name in ("1-2", "1-1", "2"):
        assert train(changed, sets, Reader(), stage=name, resume=name == "2").name == "checkpoint-00000006"
        assert losses(tmp_path / "out" / name) == losses(folder / "out" / name)
    with pytest.raises(UsageError, match="holds stage 1-1 already; add --resume to go on"):
        train(changed, sets, Reader())
    with pytest.raises(UsageError, match="stage '4' is not in order p2e: it has 1-1, 1-2, 2, 3"):
        train(changed, sets, Reader(), stage="4")
    assert train(changed, sets, Reader(), resume=True).name == "bundle"
    assert losses(tmp_path / "out" / "3") == losses(folder / "out" / "3")


def test_clipping_and_accumulation(run, tmp_path):
    made, folder, _ = run
    changed = replace(made, out=str(tmp_path / "out"), batch=1, accumulate=2, clip_norm=0.5)
    train(changed, datasets(folder), Reader(), stage="1-1")
    less = replace(changed, out=str(tmp_path / "less"), gradient_checkpointing=True)
    train(less, datasets(folder), Reader(), stage="1-1")
    assert losses(tmp_path / "less" / "1-1") == pytest.approx(losses(tmp_path / "out" / "1-1"), rel=1e-6)
    read = list(rows(tmp_path / "out" / "1-1" / "log.jsonl"))
    assert all(row["norm"] > 0 for row in read)
    counts = json.loads((tmp_path / "out" / "1-1" / "checkpoint-00000006" / "state.json").read_text())[
        "sampler"
    ]
    assert counts["drawn"] == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint(run, tmp_path, number):
    made, folder, _ = run
    changed = replace(made, out=str(tmp_path / "out"), cache=None, checkpoint_every=100)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    class Interrupting(Reader):
        def __call__(self, sample, modalities):
            if self.read == 5:
                os.kill(os.getpid(), number)
            return super().__call__(sample, modalities)

    with pytest.raises(Interrupted, match="--resume goes on from it") as caught:
        train(changed, datasets(folder, CAER={"bad": {3}}), Interrupting())
    assert caught.value.number == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    done = len(losses(tmp_path / "out" / "1-1"))
    assert 0 < done < 6 and checkpoint.latest(tmp_path / "out" / "1-1").state["step"] == done
    train(changed, datasets(folder, CAER={"bad": {3}}), Reader(), resume=True)
    assert all(losses(tmp_path / "out" / name) == losses(folder / "out" / name) for name in P2E)


def test_a_full_disk_keeps_the_last_checkpoint(run, tmp_path, monkeypatch):
    made, folder, _ = run
    changed, whole = replace(made, out=str(tmp_path / "out"), cache=None), checkpoint.write_safetensors
    written = []

    def full(path, *arguments):
        written.append(path)
        if len(written) > 3:  # the second checkpoint's second file
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_safetensors", full)
        with pytest.raises(
            ValueError, match=r"step 3 cannot be written \(No space left on device\); .*-00000002 is whole"
        ):
            train(changed, datasets(folder), Reader(), stage="1-1")
    assert sorted(os.listdir(tmp_path / "out" / "1-1")) == [
        "checkpoint-00000002",
        "log.jsonl",
        "mixture.json",
    ]
    train(changed, datasets(folder), Reader(), stage="1-1", resume=True)
    assert losses(tmp_path / "out" / "1-1") == losses(folder / "out" / "1-1")


def test_a_checkpoint_of_another_config(run, tmp_path):
    made, folder, _ = run
    changed = replace(made, out=str(tmp_path / "out"))
    train(changed, datasets(folder), Reader(), stage="1-1")
    other = replace(changed, seed=7, weight_decay=0.1)
    message = r"of another configuration: seed was 42, is 7; weight_decay was 0.05, is 0.1; resume with"
    with pytest.raises(CheckpointError, match=message):
        train(other, datasets(folder), Reader(), stage="1-1", resume=True)
    longer = of_stages(changed, init_lr=1e-3)
    with pytest.raises(CheckpointError, match=r"stage.init_lr was 0.003, is 0.001"):
        train(longer, datasets(folder), Reader(), stage="1-1", resume=True)
    with pytest.raises(UsageError, match="no such folder, so there is nothing to resume"):
        train(replace(changed, out=str(tmp_path / "none")), datasets(folder), Reader(), resume=True)


def test_a_damaged_checkpoint(run, tmp_path):
    made, folder, _ = run
    changed = replace(made, out=str(tmp_path / "out"))
    train(changed, datasets(folder), Reader(), stage="1-1")
    file = tmp_path / "out" / "1-1" / "checkpoint-00000006" / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="trainable.safetensors: not a safetensors file, or cut off"):
        train(changed, datasets(folder), Reader(), stage="2", resume=True)
    (file.parent / "state.json").write_text("{")
    with pytest.raises(
        CheckpointError, match="checkpoint-00000006: not a checkpoint of nanoemox train, or damaged"
    ):
        train(changed, datasets(folder), Reader(), stage="1-1", resume=True)


def test_too_much_bad_media(run, tmp_path):
    made, folder, _ = run
    changed = of_stages(replace(made, out=str(tmp_path / "out"), cache=None, batch=6), steps=20)
    bad = datasets(tmp_path, M3ED={"bad": {1, 2}}, CREMA_D={"bad": {5}})
    with pytest.raises(
        MediaError, match=r"of \d+ samples could not be read, more than the 5% of max_bad_share"
    ):
        train(changed, bad, Reader(), stage="1-1")
    named = {row["sample"] for row in rows(tmp_path / "out" / "1-1" / "skipped.jsonl")}
    assert named == {"M3ED_1", "M3ED_2", "CREMA_D_5"}
    more = replace(changed, out=str(tmp_path / "more"), max_bad_share=0.5)
    train(more, bad, Reader(), stage="1-1")
    state = json.loads((tmp_path / "more" / "1-1" / "checkpoint-00000040" / "state.json").read_text())
    assert (
        state["bad"] == len(list(rows(tmp_path / "more" / "1-1" / "skipped.jsonl"))) and state["tried"] > 240
    )


def test_nothing_but_bad_media_stops_at_once(run, tmp_path):
    made, folder, _ = run
    everything = set(range(12))
    bad = datasets(tmp_path, M3ED={"bad": everything}, CREMA_D={"bad": everything})
    with pytest.raises(MediaError, match="10 samples one after the other cannot be used"):
        train(replace(made, out=str(tmp_path / "out"), cache=None), bad, Reader(), stage="1-1")


def test_a_loss_that_is_not_finite(run, tmp_path):
    made, folder, _ = run
    changed = of_stages(replace(made, out=str(tmp_path / "out")), init_lr=1e30, warmup_lr=1e30, min_lr=1e30)
    with pytest.raises(
        ValueError, match=r"stage 1-1, step \d: the loss is nan; lower init_lr or set clip_norm"
    ):
        train(changed, datasets(folder), Reader(), stage="1-1")


def test_models_to_start_from(run, tmp_path, bundle):
    made, _, _ = run
    model = build_model(replace(made.model, adapters="keep"), tmp_path, dtype=torch.bfloat16, seed=0)
    stored = load_file(bundle / "model.safetensors")
    for name, key in trainable_names(model).items():
        assert torch.equal(model.get_parameter(key), stored[name])  # not rounded to the frozen weights' dtype
    new = build_model(made.model, tmp_path, dtype=torch.bfloat16, seed=0)
    other = build_model(made.model, tmp_path, dtype=torch.bfloat16, seed=1)
    for key in trainable_names(new).values():
        value = new.get_parameter(key)
        assert value.dtype == torch.float32
        if ".lora_B." in key or key.endswith("bias"):
            continue
        if value.ndim > 1:
            assert not torch.equal(value, other.get_parameter(key)), key
    assert {p.dtype for n, p in new.named_parameters() if not group_of(n)} == {torch.bfloat16}
    assert not any(new.get_parameter(k).any() for k in trainable_names(new).values() if ".lora_B." in k)
    with pytest.raises(UsageError, match="give bundle or components; a preset alone is for --dry-run"):
        build_model(replace(made.model, bundle=None), tmp_path, dtype=torch.float32, seed=0)


def test_base_models_become_a_bundle(tmp_path, monkeypatch):
    monkeypatch.setitem(nanoemox.config.PRESETS, "narrow", official.NARROW)
    paths = official.components(official.NARROW, tmp_path / "base")
    options = ModelOptions(components=str(paths["clip"].parent), preset="narrow", lora=official.NARROW.lora)
    model = build_model(options, tmp_path / "made", dtype=torch.float32, seed=0)
    assert model.config == official.NARROW
    stored = official.tensors(official.NARROW)
    for target in targets(model, model.config):
        if not group_of(target.parts[0]) and len(target.parts) == 1:
            expected = official.value(target.name, stored[target.name]).to(torch.bfloat16).float()
            assert torch.equal(model.get_parameter(target.parts[0]), expected), target.name
    assert model.get_parameter("video_branch.qformer.query_tokens").std() == pytest.approx(0.02, rel=0.2)
    with monkeypatch.context() as patch:  # it is made once
        patch.setattr("nanoemox.train.initial_model.base_bundle", None)
        build_model(options, tmp_path / "made", dtype=torch.float32, seed=0)


def test_a_data_set_of_its_own_modality_set(run, tmp_path):
    made, folder, _ = run
    data = (
        Source(set="CAER", modalities="face_frame"),
        Source(set="MIntRec"),
        Source(set="M3ED", modalities="audio_text"),
    )
    stages = dict(made.stages) | {"2": replace(made.stages["2"], data=data, init=())}
    train(replace(made, out=str(tmp_path / "out"), stages=stages), datasets(folder), Reader(), stage="2")
    assert made.stages["2"].modalities == FULL and len(losses(tmp_path / "out" / "2")) == 6


def test_orders_name_stages_only():
    assert set(ORDERS["p2e"].stages) == set(ORDERS["reverse"].stages) == set(P2E)
