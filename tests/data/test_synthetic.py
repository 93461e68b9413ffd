"""The synthetic corpus: its plan, its texts, its bytes, and that every adapter reads it."""

import errno
import hashlib
import json
import random
import sys
from collections import Counter

import numpy as np
import pytest

from nanoemox.cli import main
from nanoemox.data import open_dataset, read_sample
from nanoemox.data.formats.manifest import CHAIN
from nanoemox.data.questions import chain_text
from nanoemox.data.synthetic import faces, render, texts, voices, write_corpus, writer
from nanoemox.data.synthetic.plan import LIES, MODALITIES, SOUNDS, TRAIN, plan
from nanoemox.errors import UsageError
from nanoemox.tasks import EMOTIONS, MINTREC2_INTENTS, POLARITIES, TASKS

N, M = 14, 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "corpus"
    write_corpus(out, seed=3, n=N, test=M, workers=1)
    return out


def digests(folder):
    return {
        p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_the_same_bytes_from_any_number_of_processes(corpus, tmp_path):
    write_corpus(tmp_path / "again", seed=3, n=N, test=M, workers=2)
    assert digests(tmp_path / "again") == digests(corpus)
    write_corpus(tmp_path / "other", seed=4, n=N, test=M, workers=1)
    same = set(digests(tmp_path / "other").values()) & set(digests(corpus).values())
    assert not same


def test_balance_and_rule():
    plans = plan(0, TRAIN, 420, range(35))
    assert set(Counter(p.emotion for p in plans).values()) == {60}
    assert set(Counter((p.emotion, p.lie) for p in plans if p.lie).values()) == {10}
    for p in plans:
        assert p.lie in LIES
        reported = Counter(p.shown.values())
        assert reported[p.emotion] == (2 if p.lie else 3)  # the truth is what two agree on
        assert all((p.shown[m] == p.emotion) == (m != p.lie) for m in MODALITIES)
        assert p.shown["words"] in p.spoken.frame.shows
    assert Counter(p.lie for p in plan(0, SOUNDS, 70, range(35))) == {"": 35, "words": 35}


def test_no_person_is_in_both_parts(corpus):
    speakers = []
    for name in ("manifest.jsonl", "manifest_test.jsonl"):
        lines = [json.loads(line) for line in (corpus / name).read_text().splitlines()]
        speakers.append({line["meta"]["speaker"] for line in lines})
        assert {line["id"].rsplit("_")[-1] for line in lines} == {str(s) for s in speakers[-1]}
    assert speakers[0] and speakers[1] and not speakers[0] & speakers[1]


def test_answers_are_short_and_of_the_tasks_labels():
    words, intents = set(), set()
    for p in plan(1, TRAIN, 1260, range(105)):
        a = p.answers
        assert a["emotion"] in EMOTIONS and a["sentiment"] in POLARITIES and a["labels"][0] == a["emotion"]
        assert a["intent"] in MINTREC2_INTENTS
        assert len(a["reason"].split()) <= 40
        assert len(chain_text([a["chain"][key] for key in CHAIN], a["reply"]).split()) <= 60
        assert f"so the person is {a['emotion']}." in a["reason"]
        assert (f"The {p.lie} do" in a["reason"]) == bool(p.lie)
        intents.add(a["intent"])
        text = " ".join(
            [p.spoken.text, a["reason"], a["reply"], a["intent"], *a["labels"], *a["chain"].values()]
        )
        words |= {word.strip(".,?!").lower() for word in text.split()}
    assert intents == set(texts.INTENTS)
    assert len(words) < 350, len(words)


def test_irony_changes_the_intent():
    praise = next(f for f in texts.FRAMES if f.intent == "praise")
    complain = next(f for f in texts.FRAMES if f.intent == "complain")
    assert texts.true_intent(praise, "angry", "words") == "taunt"
    assert texts.true_intent(praise, "happy", "") == "praise"
    assert texts.true_intent(praise, "happy", "face") == "praise"
    assert texts.true_intent(complain, "happy", "words") == "joke"


def test_fear_and_surprise_differ_in_their_course_alone():
    assert faces.UNITS["fearful"] == faces.UNITS["surprised"]
    courses = {
        emotion: np.stack([faces.course(emotion, 20, np.random.default_rng(i)) for i in range(50)])
        for emotion in ("fearful", "surprised")
    }
    np.testing.assert_allclose(courses["fearful"], courses["surprised"][:, ::-1])
    centre = {emotion: (c * np.arange(20)).sum(1) / c.sum(1) for emotion, c in courses.items()}
    assert centre["surprised"].max() < centre["fearful"].min()
    assert np.diff(faces.course("happy", 20, np.random.default_rng(0))).min() >= 0


def mean_film(emotion, count=6):
    out = []
    for i in range(count):
        looks = faces.Looks.draw(np.random.default_rng(0))
        out.append(faces.film(emotion, looks, np.zeros(16), np.random.default_rng(i))[0].astype(float))
    return np.mean(out, 0)


def test_expressions_can_be_seen():
    """With pose, light and background fixed, an expression changes the picture; neutral hardly changes it."""
    still = mean_film("neutral")
    for emotion in EMOTIONS:
        moved = np.abs(mean_film(emotion) - still).mean((1, 2, 3))
        assert moved.shape == (16,)
        if emotion != "neutral":
            assert moved.max() > 0.8, (emotion, moved)


def test_prosody_can_be_heard():
    throat = voices.Throat(120.0, 1.0, 0.0, 0.02)
    heard = {}
    for emotion in EMOTIONS:
        waves = [voices.utter(emotion, throat, 2.5, np.random.default_rng(i))[0] for i in range(8)]
        heard[emotion] = np.mean([np.sqrt(np.mean(w**2)) for w in waves])
        assert all(len(w) == 40000 and np.abs(w).max() <= 1 for w in waves)
    assert heard["angry"] > 2 * heard["neutral"] > 2 * heard["sad"]


@pytest.mark.parametrize(
    ("format", "split", "kind", "modalities", "count"),
    [
        ("crema_d", "train", "emotion_recognition", "audio_text", None),
        ("m3ed", "train", "emotion_recognition", "audio_text", None),
        ("caer_ferv39k", "train", "emotion_recognition", "face_frame", N),
        ("mintrec", "train", "intent_recognition", "multiface_audio_face_frame_text", None),
        ("mintrec2", "test", "intent_recognition", "multiface_audio_face_frame_text", None),
        ("mercaptionplus", "train", "ovlabel", "multiface_audio_face_frame_text", N),
        ("merr_fine", "train", "description", "multiface_audio_face_frame_text", N),
        ("avamerg", "train", "empathic_response_with_coe", "multiface_audio_face_frame_text", N),
        ("avamerg", "test", "emotion_recognition", "multiface_audio_face_frame_text", M // 2),
        ("manifest", "train", "msa", "multiface_audio_face_frame_text", N),
        ("manifest", "test", "erg", "multiface_audio_face_frame_text", M),
    ],
)
def test_every_adapter_reads_it(corpus, format, split, kind, modalities, count):
    data = open_dataset(format, corpus, split=split)
    assert len(data) == count or (count is None and 0 < len(data) <= N)
    for index in range(len(data)):
        sample = data.sample(index, kind, random.Random(index))
        assert (sample.video or sample.audio).is_file() and sample.answer
    if format in ("crema_d", "caer_ferv39k"):
        assert {record.fields["onehot"] for record in data.records} <= set(data.candidates)
    clip = read_sample(data.sample(0, kind, random.Random(0)), modalities)
    assert (clip.frames is not None) == ("frame" in modalities) and (clip.audio is not None) == (
        "audio" in modalities
    )
    assert 2 < clip.duration < 3.1 and not clip.notes


def test_labels_agree_between_the_files(corpus):
    lines = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    by = {(line["id"], line["task"]): line for line in lines}
    assert len(by) == 6 * N and {task for _, task in by} == set(TASKS)
    for record in open_dataset("avamerg", corpus).records:
        assert record.fields["speaker_emotion"] == by[record.media, "mer"]["label"]
        assert record.fields["response"] == by[record.media, "erg"]["reply"]
    for record in open_dataset("mercaptionplus", corpus).records:
        assert record.fields["ovlabel"].split(", ") == by[record.name, "ov-mer"]["labels"]
        assert record.fields["description"] == by[record.name, "eri"]["reason"]
    for format in ("mintrec", "mintrec2"):
        for record in open_dataset(format, corpus).records:
            assert record.fields["intent"].lower() == by[record.name, "mir"]["label"]
            assert record.subtitle == by[record.name, "mir"]["subtitle"]
    nouns = {"anger": "angry", "disgust": "disgusted", "fear": "fearful", "surprise": "surprised"}
    for record in open_dataset("caer_ferv39k", corpus).records:
        label = record.fields["onehot"]
        assert nouns.get(label, label) == by[record.name, "mer"]["meta"]["shown"]["face"]


def test_command(tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["data", "synth", "--out", str(out), "--n", "2", "--test", "2", "--workers", "1"]) == 0
    assert main(["data", "validate", str(out / "manifest_test.jsonl"), "--media"]) == 0
    before = digests(out)
    assert main(["data", "synth", "--out", str(out)]) == 2
    assert "exists and is not empty; name a new folder" in capsys.readouterr().err
    assert digests(out) == before and [p.name for p in tmp_path.iterdir()] == ["new"]
    with pytest.raises(UsageError, match=r"the counts must lie in 2\.\.40000"):
        write_corpus(tmp_path / "x", n=1)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write_annotations", full)
    with pytest.raises(ValueError, match="the disk is full; make room or lower --n"):
        write_corpus(tmp_path / "x", n=2, test=2, workers=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match="MiB of disk, 0 MiB are free"):
        write_corpus(tmp_path / "x", n=2, test=2, workers=1)
    assert not list(tmp_path.iterdir())


def test_what_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "write_annotations", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    (tmp_path / "x").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "x", n=2, test=2, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and not list((tmp_path / "x").iterdir())


def test_units_are_those_that_are_drawn(monkeypatch):
    """What pretraining is told of a clip is what `render` draws, number by number."""
    (p,) = plan(3, TRAIN, 1, range(1))
    drawn = []
    act = faces.act
    monkeypatch.setattr(faces, "act", lambda *a: drawn.append(act(*a)) or drawn[-1])
    pixels, _, _ = render.render(p)
    reported = render.units(p)
    assert reported.shape == (len(pixels), len(faces.NAMES))
    assert np.array_equal(reported, np.stack(list(drawn[0][1].values()), 1).astype(np.float32))


def test_words_can_be_audible(tmp_path, monkeypatch):
    """A stand-in for the synthesiser says 3 s of a tone, louder the more energy is asked for."""
    program = tmp_path / "espeak-ng"
    program.write_text(
        f"#!{sys.executable}\nimport sys, wave\nimport numpy as np\nassert sys.stdin.read().strip()\n"
        "asked = dict(zip(sys.argv[3::2], sys.argv[4::2]))\n"
        "assert asked.keys() == {'-v', '-p', '-s', '-a'}, sys.argv\n"
        "tone = np.sin(2 * np.pi * 440 * np.arange(3 * 22050) / 22050) * float(asked['-a']) * 80\n"
        "import io\nheld = io.BytesIO()\n"
        "with wave.open(held, 'wb') as file:\n    file.setparams((1, 2, 22050, 0, 'NONE', ''))\n"
        "    file.writeframes(tone.astype('<i2').tobytes())\n"
        "head = bytearray(held.getvalue())\n"
        "head[4:8] = head[40:44] = b'\\x00\\xf0\\xff\\x7f'\n"  # as in a pipe
        "sys.stdout.buffer.write(head)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (p,) = plan(3, TRAIN, 1, range(1))
    pixels, mute, _ = render.render(p)
    longer, sound, _ = render.render(p, audible=True)
    assert len(pixels) < len(longer) == int(3.2 * faces.RATE) and len(mute) < len(sound)
    tone = np.exp(2j * np.pi * 440 * np.arange(len(sound)) / voices.RATE)
    strength = [abs(np.vdot(tone[: len(x)], x)) / len(x) for x in (mute, sound)]
    assert strength[1] > 10 * strength[0] and np.abs(sound).max() <= 1
    program.write_text("#!/bin/sh\necho 'no voice' >&2; exit 3\n")
    with pytest.raises(ValueError, match=r"espeak-ng failed \(3\): no voice"):
        write_corpus(tmp_path / "x", n=2, test=2, workers=1, audible=True)
    assert [path.name for path in tmp_path.iterdir()] == ["espeak-ng"]
    program.unlink()
    with pytest.raises(UsageError, match="espeak-ng is not on the PATH; install eSpeak NG"):
        write_corpus(tmp_path / "x", n=2, test=2, audible=True)
    assert not list(tmp_path.iterdir())
