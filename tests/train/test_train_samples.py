"""Samples: tokens and labels as the model is to learn them, and what replaces one that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import FULL, FakeSet, Reader, datasets

import nanoemox
from nanoemox.data.record import Sample
from nanoemox.train.examples import Samples, Unusable
from nanoemox.train.features import Features, streams
from nanoemox.train.learner import Learner
from nanoemox.train.sampler import Draw
from nanoemox.train.stages import Source, Stage


@pytest.fixture(scope="module")
def model(bundle):
    return nanoemox.load(bundle, fast=False, device="cpu", dtype="float32")


def samples(model, *sets, modalities=FULL, reader=None, max_tokens=1024, folder=None):
    stage = Stage(
        name="x", data=tuple(Source(set=fake.name) for fake in sets), modalities=FULL, train=("audio",)
    )
    indices = [range(len(fake)) for fake in sets]
    features = Features(model, folder)
    names = [modalities] * len(sets)
    return Samples(
        stage, sets, names, model, features, reader or Reader(), indices=indices, max_tokens=max_tokens
    )


def test_tokens_and_labels(model, tmp_path):
    fake = FakeSet("M3ED", tmp_path, ("emotion_recognition",))
    built = samples(model, fake)
    examples = [built.fetch(Draw(0, index, "emotion_recognition", 5)) for index in (0, 1)]
    batch = built.batch(examples, 0)
    tokenizer = model.tokenizer
    for row, example in enumerate(examples):
        text = tokenizer.decode(example.prompt)
        assert text.startswith("###Human: ") and text.endswith(" ###Assistant: ")
        assert (
            text.count("<AudioHere>") == 4
            and text.count("<MultiHere>") == 1
            and text.count("<FaceHere>") == 4
        )
        assert ("<Subtitle>It is what it is.</Subtitle>" if row else "<Subtitle></Subtitle>") in text
        assert tokenizer.decode(example.target) == f"The person is {('happy', 'sad')[row]}.###"
        ids, labels = batch.ids[row].tolist(), batch.labels[row].tolist()
        length = len(example.prompt) + len(example.target) + 2
        assert ids[:length] == [tokenizer.bos_id, *example.prompt, *example.target, tokenizer.eos_id]
        assert labels[: len(example.prompt) + 1] == [-100] * (len(example.prompt) + 1)
        assert labels[len(example.prompt) + 1 : length] == [*example.target, tokenizer.eos_id]
        assert set(labels[length:]) <= {-100}
        assert batch.mask[row].sum() == length - 1  # the mask hides the last eos, as officially
    assert batch.tokens == sum(len(example.target) + 1 for example in examples)
    assert {name: value.shape[:2] for name, value in batch.features.items()} == dict.fromkeys(
        ("visual", "visual_taps", "face", "audio", "audio_taps"), (2, 8)
    )


def test_a_dialogue_history_has_its_own_tags(model, tmp_path):
    built = samples(model, FakeSet("AvaMERG", tmp_path, ("emotion_recognition",)))
    sample = Sample("a", "AvaMERG", "erg", "[Interaction] Reply.", "Yes.", "speaker: hello", history=True)
    text = model.tokenizer.decode(built.tokens(sample, FULL)[0])
    assert "<Dialogue History>speaker: hello</Dialogue History>" in text and "Subtitle" not in text
    text = model.tokenizer.decode(built.tokens(replace(sample, history=False), FULL)[0])
    assert "<Subtitle>speaker: hello</Subtitle>" in text and "History" not in text


def test_the_loss_is_the_language_models_own(model, tmp_path):
    fake = FakeSet("M3ED", tmp_path, ("emotion_recognition",))
    built = samples(model, fake)
    batch = built.batch([built.fetch(Draw(0, i, "emotion_recognition", 5)) for i in (1, 2, 3)], 0)
    learner = Learner(model, ()).eval()
    with torch.no_grad():
        loss = learner(batch.features, batch.ids, batch.labels, batch.mask, FULL)
        clips = [
            built.reader(fake.sample(i, "emotion_recognition", __import__("random")), FULL) for i in (1, 2, 3)
        ]
        frames, audio = (
            torch.from_numpy(np.stack([getattr(c, name) for c in clips])) for name in ("frames", "audio")
        )
        embeds = model.splice(batch.ids, model.encode_streams(frames, audio))
        mean = model.language.base(inputs_embeds=embeds, attention_mask=batch.mask, labels=batch.labels).loss
    assert float(loss) / batch.tokens == pytest.approx(float(mean), rel=1e-5)


def test_a_long_sample_gives_way_to_another(model, tmp_path):
    fake = FakeSet("M3ED", tmp_path, ("emotion_recognition",), long={3})
    example = samples(model, fake).fetch(Draw(0, 3, "emotion_recognition", 5))
    (row,) = example.rejected
    assert row.sample == "M3ED_3" and row.long and "1024 are allowed" in row.reason
    again = samples(model, fake).fetch(Draw(0, 3, "emotion_recognition", 5))
    assert (
        again.target == example.target
        and samples(model, fake).fetch(Draw(0, 3, "emotion_recognition", 6)).keys != example.keys
    )  # another seed, another replacement


def test_unreadable_and_missing_media_give_way(model, tmp_path):
    fake = FakeSet("M3ED", tmp_path, ("emotion_recognition",), bad={3, 4})
    fake.file(5).unlink()
    built = samples(model, fake)
    for index, reason in ((3, "not a media file"), (5, "M3ED_5.mp4: no such file")):
        example = built.fetch(Draw(0, index, "emotion_recognition", 5))
        assert reason in example.rejected[0].reason and not example.rejected[0].long and example.media


def test_ten_tries(model, tmp_path):
    fake = FakeSet("M3ED", tmp_path, ("emotion_recognition",), bad=set(range(12)))
    reader = Reader()
    with pytest.raises(
        Unusable, match="M3ED: 10 samples one after the other cannot be used; the last was M3ED_"
    ) as e:
        samples(model, fake, reader=reader).fetch(Draw(0, 0, "emotion_recognition", 1))
    assert reader.read == len(e.value.rejected) == 10


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        (FULL, ("frames", "audio")),
        ("audio_text", ("audio",)),
        ("face_frame", ("frames",)),
        ("textonly", ()),
        ("multiface_text", ("frames", "audio")),
        ("faceonly", ("frames",)),
    ],
)
def test_streams_of_a_set(name, needed):
    assert streams(name) == needed


def test_sets_of_the_fixture_have_their_tasks(tmp_path):
    assert {fake.task_of(kind) for fake in datasets(tmp_path).values() for kind in fake.kinds} == {
        "mer", "mir", "eri", "ov-mer", "erg"
    }  # fmt: skip
