"""The mixture that is drawn is the mixture that is meant; draws repeat and go on exactly."""

import json
from dataclasses import replace

import pytest
from paths import SHARED
from tiny_training import FULL

from nanoemox.errors import UsageError
from nanoemox.train.config import read_config
from nanoemox.train.dryrun import Stand, stands
from nanoemox.train.sampler import Mixture, Sampler, realised
from nanoemox.train.stages import Source, Stage

PAPER = read_config("paper")
CELLS = {  # percent: docs/training.md section 3
    "dataset_exact": {
        "MERCaptionPlus/eri": 27.5, "MERCaptionPlus/ov-mer": 27.5, "MERRFine/eri": 5, "MIntRec/mir": 2,
        "MIntRec2/mir": 3, "AvaMERG/erg": 17.5, "AvaMERG/mer": 17.5,
    },
    "task_exact": {
        "MERCaptionPlus/eri": 26, "MERCaptionPlus/ov-mer": 28, "MERRFine/eri": 5, "MIntRec/mir": 2,
        "MIntRec2/mir": 3, "AvaMERG/erg": 18, "AvaMERG/mer": 18,
    },
}  # fmt: skip
EMOTIONS = Stage(
    name="1-2", data=(Source(set="FERV39k"), Source(set="CAER")), modalities="face_frame", train=("video",)
)


def drawn(stage, datasets=None, batches=20_000, batch=3, seed="42|x"):
    sampler = Sampler(Mixture(stage, datasets or stands(PAPER), 42), batch, seed)
    for _ in range(batches):
        sampler.draw()
    return sampler


def summed(cells, place):
    out = {}
    for cell, share in cells.items():
        out[cell.split("/")[place]] = out.get(cell.split("/")[place], 0) + share
    return out


@pytest.mark.parametrize("profile", CELLS)
def test_profiles_of_phase_3(profile):
    stage = replace(PAPER.stages["3"], profile=profile)
    got = realised(drawn(stage).counts)
    assert got["dataset"] == pytest.approx(summed(CELLS[profile], 0), abs=1.0)
    assert got["task"] == pytest.approx(summed(CELLS[profile], 1), abs=2.0)
    expected = {
        f"{name}/{task}": 100 * share
        for (name, task), share in Mixture(stage, stands(PAPER), 0).cells().items()
    }
    assert expected == pytest.approx(CELLS[profile])


def test_natural_shares_of_phases_1_and_2():
    assert realised(drawn(PAPER.stages["1-1"]).counts)["dataset"] == pytest.approx(
        {"M3ED": 76.66, "CREMA_D": 23.34}, abs=1.0
    )
    sets = {"FERV39k": Stand("caer_ferv39k", 38_935), "CAER": Stand("caer_ferv39k", 13_201)}
    assert realised(drawn(EMOTIONS, sets).counts)["dataset"] == pytest.approx(
        {"FERV39k": 74.68, "CAER": 25.32}, abs=1.0
    )
    assert realised(drawn(PAPER.stages["2"]).counts)["dataset"] == pytest.approx(
        {"MIntRec": 23.97, "MIntRec2": 76.03}, abs=1.0
    )


@pytest.mark.skipif(not (SHARED / "golden" / "curriculum").is_dir(), reason="needs the full fixtures")
def test_the_tables_are_the_golden_ones():
    golden = json.loads((SHARED / "golden" / "curriculum" / "mix_targets.json").read_text())["phase3"]
    for profile, cells in CELLS.items():
        assert {name.lower(): v for name, v in golden[f"profile_{profile}"]["cells"].items()} == {
            name.lower(): v for name, v in cells.items()
        }


def test_a_batch_is_of_one_set_and_draws_repeat():
    stage = PAPER.stages["3"]
    a, b = (Sampler(Mixture(stage, stands(PAPER), 42), 3, "42|3") for _ in range(2))
    batches = [a.draw() for _ in range(200)]
    assert batches == [b.draw() for _ in range(200)]
    assert all(len({draw.source for draw in batch}) == 1 for batch in batches)
    assert batches != [Sampler(Mixture(stage, stands(PAPER), 43), 3, "43|3").draw() for _ in range(200)]


def test_resumed_draws_are_the_same():
    stage = PAPER.stages["3"]
    whole, half = (Sampler(Mixture(stage, stands(PAPER), 42), 3, "42|3") for _ in range(2))
    expected = [whole.draw() for _ in range(300)]
    first = [half.draw() for _ in range(157)]
    resumed = Sampler(Mixture(stage, stands(PAPER), 42), 3, "42|3")
    resumed.restore(json.loads(json.dumps(half.state())))
    assert first + [resumed.draw() for _ in range(143)] == expected
    assert resumed.counts == whole.counts


def test_every_record_comes_before_any_comes_again():
    stage = Stage(name="x", data=(Source(set="a"),), modalities=FULL, train=("audio",))
    sampler = Sampler(Mixture(stage, {"a": Stand("mintrec", 10)}, 1), 5, "1")
    for _ in range(3):
        assert sorted(draw.index for _ in range(2) for draw in sampler.draw()) == list(range(10))


def test_ratio_keeps_a_part_and_does_not_weigh():
    data = (Source(set="a", ratio=0.25, weight=1), Source(set="b", weight=1))
    stage = Stage(name="x", data=data, modalities=FULL, train=("audio",))
    sets = {"a": Stand("mintrec", 40), "b": Stand("mintrec", 40)}
    mixture = Mixture(stage, sets, 1)
    assert len(mixture.indices[0]) == 10 and len(mixture.indices[1]) == 40
    assert (
        mixture.indices[0] == Mixture(stage, sets, 1).indices[0]
        and mixture.indices[0] != Mixture(stage, sets, 2).indices[0]
    )
    assert realised(drawn(stage, sets, 4000).counts)["dataset"] == pytest.approx({"a": 50, "b": 50}, abs=3)


@pytest.mark.parametrize(
    ("data", "profile", "message"),
    [
        ((Source(set="c"),), "weights", r"data set c: not among the datasets; known are a, b, empty"),
        ((Source(set="a", weight=1), Source(set="b")), "weights", "a weight to every data set or to none"),
        ((Source(set="a", weight=0),), "weights", "one must be above 0"),
        (
            (Source(set="a", kinds={"smell": 1}),),
            "weights",
            r"no answer type 'smell'; known are intent_recognition",
        ),
        ((Source(set="a", ratio=2.0),), "weights", r"ratio 2.0 is not in \(0, 1\]"),
        ((Source(set="empty"),), "weights", "holds no record"),
        (
            (Source(set="a"),),
            "task_exact",
            "profile task_exact is for the data sets MERCaptionPlus, MERRFine",
        ),
        ((Source(set="a"),), "even", "profile 'even' does not exist; known are weights, natural"),
    ],
)
def test_mixtures_that_cannot_be(data, profile, message):
    stage = Stage(name="x", data=data, modalities=FULL, train=("audio",), profile=profile)
    sets = {"a": Stand("mintrec", 4), "b": Stand("mintrec", 4), "empty": Stand("mintrec", 0)}
    with pytest.raises(UsageError, match=message):
        Mixture(stage, sets, 1)
