"""Stop rule, post-processing, modality sets and learning rates, case by case."""

import pytest

from nanoemox.generation.stop import StopRule, postprocess
from nanoemox.prompts import MODALITY_SETS, Stream, Templates, build
from nanoemox.train.schedule import Schedule

BOS, EOS = "<|im_start|>", "<|im_end|>"
PHASES = {
    "phase1_1": (3, 3e-4, 1e-4, 1e-6),
    "phase1_2": (5, 3e-4, 1e-4, 1e-6),
    "phase2": (1, 1e-5, 1e-5, 5e-7),
    "phase3": (60, 8e-6, 8e-6, 5e-7),
}


class QwenLike:
    """The ids that Qwen2.5's tokenizer gives the stop mark."""

    eos_id = 151645

    def encode(self, text):
        return {"###": [14374], "a##": [64, 565], "a#": [64, 2]}[text]


class Splitting(QwenLike):
    """A tokenizer of single characters."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_stop_rule(behaviour):
    rule = StopRule(QwenLike())
    for case in behaviour["stop"]:
        assert rule(case["generated_ids"]) == case["stop"], case


def test_stop_rule_of_a_tokenizer_that_splits_the_mark():
    rule = StopRule(Splitting())
    assert rule([ord(c) for c in "sad###"]) and rule([5, 151645])
    assert not rule([ord(c) for c in "sad##"]) and not rule([ord(c) for c in "###a"])


def test_postprocess(behaviour):
    for case in behaviour["postprocess"]:
        assert postprocess(case["decoded"], BOS, EOS) == case["response"], case


def test_modality_sets(behaviour):
    kinds = {"Multi": "fusion", "Audio": "audio", "Face": "face", "Frame": "frames", "Image": "image"}
    assert set(behaviour["modality_sets"]) == set(MODALITY_SETS)
    for name, expected in behaviour["modality_sets"].items():
        for official in (False, True):
            segments = build(
                name, subtitle="WORDS", question="Q?", templates=Templates(), official_start=official
            )
            text = "".join(s if isinstance(s, str) else f"[{s.kind}]" for s in segments)
            assert [s.kind for s in segments if isinstance(s, Stream)] == [
                kinds[k] for k in expected["placeholders"]
            ], name
            assert text.startswith("###Human: ") == (expected["starts_with_human_tag"] or not official), name
            assert ("<Subtitle>WORDS</Subtitle>" in text) == expected["has_subtitle"], name
            assert text.endswith("Q?" + expected["tail"]), name
        assert set(MODALITY_SETS[name].official_loads) == set(expected["loads"]), name


def test_learning_rates(behaviour):
    for case in behaviour["lr"]:
        epochs, init, minimum, start = PHASES[case["phase"]]
        schedule = Schedule(
            epochs=epochs, steps_per_epoch=5000, init=init, minimum=minimum, warmup_start=start
        )
        assert schedule.rate(case["epoch"], case["iter"]) == pytest.approx(case["lr"], rel=1e-12), case


def test_legacy_schedule_counts_epochs_from_one():
    sizes = dict(epochs=3, steps_per_epoch=5000, init=3e-4, minimum=1e-4, warmup_start=1e-6)
    ours, legacy = Schedule(**sizes), Schedule(**sizes, legacy_epoch_offset=1)
    assert legacy.rate(0, 17) == ours.rate(1, 17) and legacy.rate(2, 4999) > legacy.rate(2, 0)
    assert ours.rate(2, 4999) == pytest.approx(1e-4, rel=1e-4)


def test_short_epochs_warm_up_without_a_jump():
    schedule = Schedule(
        epochs=4, steps_per_epoch=50, init=1e-3, minimum=1e-5, warmup_start=1e-6, warmup_steps=100
    )
    rates = [schedule.rate(epoch, step) for epoch in range(4) for step in range(50)]
    assert max(abs(a - b) for a, b in zip(rates, rates[1:], strict=False)) < 2.5e-5
    assert max(rates) == pytest.approx(1e-3) and rates[-1] < 2e-5
