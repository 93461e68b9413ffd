"""Stages, orders, trainable groups: what the published curriculum says."""

from dataclasses import replace

import pytest
from tiny_training import SETS, config

from nanoemox.build import build_empty
from nanoemox.config import NanoEmoXConfig
from nanoemox.errors import UsageError
from nanoemox.train.config import read_config, to_dict
from nanoemox.train.dryrun import dry_run, stands, trainable
from nanoemox.train.initial_model import trainable_names
from nanoemox.train.run import the_plan
from nanoemox.train.stages import ALL, GROUPS, Joint, Stage, group_of

PAPER = read_config("paper")


@pytest.fixture(scope="module")
def full():
    return build_empty(NanoEmoXConfig(), "full size")


@pytest.mark.parametrize(
    ("stage", "count"), [("1-1", 20_905_472), ("1-2", 22_572_800), ("2", 50_835_203), ("3", 69_299_971)]
)
def test_trainable_parameters_at_full_size(full, stage, count):
    assert trainable(full, PAPER.stages[stage]) == count


def test_groups_hold_all_but_the_encoders_and_the_language_model(full):
    trained = set(trainable_names(full).values())
    for name, _ in full.named_parameters():
        frozen = name.startswith(("vision.", "audio.", "face.")) or (
            name.startswith("language.") and ".lora_" not in name
        )
        assert (name in trained) != frozen and (group_of(name) in GROUPS) != frozen, name
    assert set(PAPER.stages["3"].train) == set(ALL)
    # The face head stays as it is (docs/training.md section 1).
    assert PAPER.stages["1-1"].train == ("audio",)


def test_the_published_numbers():
    got = {name: (s.epochs, s.steps, s.init_lr, s.min_lr, s.warmup_lr) for name, s in PAPER.stages.items()}
    assert got == {
        "1-1": (3, 5000, 3e-4, 1e-4, 1e-6), "1-2": (5, 5000, 3e-4, 1e-4, 1e-6),
        "2": (1, 5000, 1e-5, 1e-5, 5e-7), "3": (60, 5000, 8e-6, 8e-6, 5e-7),
    }  # fmt: skip
    sets = {name: s.modalities for name, s in PAPER.stages.items()}
    assert sets == {"1-1": "audio_text", "1-2": "face_frame"} | dict.fromkeys(
        "23", "multiface_audio_face_frame_text"
    )
    assert (PAPER.batch, PAPER.weight_decay, PAPER.betas, PAPER.clip_norm) == (3, 0.05, (0.9, 0.999), None)
    assert PAPER.order == "p2e" and PAPER.seed == 42


def test_reversing_edits_no_stage():
    forward, back = (the_plan(replace(PAPER, order=order), stands(PAPER)) for order in ("p2e", "reverse"))
    assert [stage.name for stage in back.stages] == ["3", "2", "1-2", "1-1"]
    assert sorted(map(repr, forward.stages)) == sorted(map(repr, back.stages))
    assert forward.starts == {"1-1": (), "1-2": (), "2": ("1-1", "1-2"), "3": ("2",)}
    assert back.starts == {"3": (), "2": ("3",), "1-2": ("3", "2"), "1-1": ("3", "2", "1-2")}


def test_joint_phase3_data():
    (stage,) = the_plan(replace(PAPER, order="joint"), stands(PAPER)).stages
    assert (
        stage.data == PAPER.stages["3"].data and stage.profile == "dataset_exact" and stage.total == 300_000
    )
    assert set(stage.train) == set(ALL) and (stage.init_lr, stage.min_lr) == (1e-5, 1e-5)
    matched = replace(PAPER, order="joint", joint=Joint(match_steps=True))
    assert the_plan(matched, stands(PAPER)).stages[0].total == 345_000


def test_joint_all_data_weighs_the_phases_by_their_steps():
    joint = replace(PAPER, order="joint", joint=Joint(variant="all_data"))
    (stage,) = the_plan(joint, stands(PAPER)).stages
    weights = {source.set: source.weight for source in stage.data}
    assert set(weights) == set(PAPER.datasets) and sum(weights.values()) == pytest.approx(1)
    assert weights["M3ED"] + weights["CREMA_D"] == pytest.approx(15 / 345)
    assert weights["CAER_FERV39k"] == pytest.approx(25 / 345)
    assert weights["MERCaptionPlus"] == pytest.approx(0.55 * 300 / 345)
    assert weights["MIntRec"] == pytest.approx(0.02 * 300 / 345 + 5 / 345 * 1779 / 7423)
    sets = {source.set: source.modalities for source in stage.data}
    assert sets["M3ED"] == "audio_text" and sets["CAER_FERV39k"] == "face_frame"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ("audio", "lips")}, r"stage x: unknown trainable group 'lips'; known are video, audio"),
        ({"modalities": "smell"}, r"stage x: unknown modality set 'smell'; known are faceframe"),
        ({"train": ()}, r"needs at least one data set and one trainable group"),
        ({"steps": 0}, r"must be at least 1"),
    ],
)
def test_a_stage_that_cannot_be(change, message):
    good = {"name": "x", "data": PAPER.stages["2"].data, "modalities": "audio_text", "train": ("audio",)}
    with pytest.raises(UsageError, match=message):
        Stage(**good | change)


def test_dry_run_of_the_paper():
    records = dry_run(PAPER, stands(PAPER), draws=2000)
    assert [r["stage"] for r in records] == ["1-1", "1-2", "2", "3"]
    assert all(r["fits"] and 4e9 < r["memory"]["total"] < 24e9 and r["seconds"]["step"] > 0 for r in records)
    assert records[3]["intended"]["task"] == pytest.approx(
        {"mer": 17.5, "ov-mer": 27.5, "mir": 5, "eri": 32.5, "erg": 17.5}
    )
    for record in records:
        for level in ("dataset", "task"):
            assert record["drawn"][level] == pytest.approx(record["intended"][level], abs=3.5)


def test_config_goes_through_json(tmp_path):
    made = config(tmp_path, tmp_path)
    assert set(to_dict(made)["datasets"]) == set(SETS)
