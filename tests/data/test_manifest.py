"""The JSONL manifest: what its lines become, and every complaint about them."""

import json
import random
import shutil

import pytest
from paths import SAMPLE

from nanoemox.cli import main
from nanoemox.data import open_dataset, read_sample
from nanoemox.errors import MediaError, UsageError
from nanoemox.tasks import TASKS

CHAIN = {"event": "losing a ring", "emotion": "sad", "cause": "the ring is gone", "goal": "to comfort"}
LINES = [
    {"id": "a", "video": "clip.mp4", "subtitle": "It is gone.", "task": "mer", "label": "sad"},
    {"id": "a", "video": "clip.mp4", "subtitle": "It is gone.", "task": "msa", "label": "negative"},
    {"id": "a", "video": "clip.mp4", "subtitle": "It is gone.", "task": "ov-mer", "labels": ["sad", "hurt"]},
    {"id": "a", "video": "clip.mp4", "subtitle": "It is gone.", "task": "eri", "reason": "She looks down."},
    {"id": "a", "video": "clip.mp4", "subtitle": "It is gone.", "task": "mir", "label": "inform"},
    {
        "id": "a",
        "video": "clip.mp4",
        "subtitle": "It is gone.",
        "task": "erg",
        "chain": CHAIN,
        "reply": "I am sorry.",
    },
    {
        "id": "b",
        "video": "clip.mp4",
        "start": 0.5,
        "end": 1,
        "task": "mer",
        "question": "And now?",
        "answer": "Glum.",
    },
    {
        "id": "c",
        "subtitle": "Well.",
        "task": "mer",
        "label": "bored",
        "candidates": ["bored", "calm"],
        "meta": {"x": 1},
    },
]


@pytest.fixture
def write(tmp_path):
    shutil.copy(SAMPLE, tmp_path / "clip.mp4")

    def written(*lines, name="own.jsonl"):
        path = tmp_path / name
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
        )
        return path

    return written


def test_lines_become_samples(write):
    data = open_dataset("manifest", write(*LINES), name="own")
    assert (len(data), data.name, data.kinds) == (3, "own", tuple(TASKS))
    rng = random.Random(0)
    for kind in data.kinds:
        sample = data.sample(0, kind, rng)
        assert (sample.name, sample.task, sample.subtitle, sample.video.name) == (
            "a",
            kind,
            "It is gone.",
            "clip.mp4",
        )
        assert sample.question.startswith(TASKS[kind].tag) and sample.audio is None and not sample.history
        parsed = TASKS[kind].parse(sample.answer, TASKS[kind].labels)
        expected = {"msa": ["negative"], "mir": ["inform"], "ov-mer": ["sad", "hurt"], "eri": []}.get(
            kind, ["sad"]
        )
        assert parsed.labels == expected
    assert data.sample(0, "erg", rng).answer.endswith("</think>\n I am sorry.")
    second = data.sample(1, "mer", rng)
    assert (second.question, second.answer, second.start, second.end) == (
        "[Recognition] And now?",
        "Glum.",
        0.5,
        1,
    )
    third = data.sample(2, "mer", rng)
    assert "bored, calm?" in third.question and third.answer == "The emotion of the person is bored."
    assert data.sample(1, "erg", rng).name == "a"  # the next clip that has the task


def test_history_fills_the_subtitle(write):
    turns = [{"role": "speaker", "utterance": "Hi."}, {"role": "listener", "utterance": "Yes?"}]
    line = {**LINES[5], "history": turns, "context": "Two friends."}
    sample = open_dataset("manifest", write(line)).sample(0, "erg", random.Random(0))
    assert sample.history and sample.subtitle == "speaker: Hi.\nlistener: Yes?"
    assert "Context: Two friends. The speaker says: It is gone. [Interaction]" in sample.question
    own = open_dataset("manifest", write({**line, "question": "What would you say?"})).sample(
        0, "erg", random.Random(0)
    )
    assert (
        own.question
        == "Context: Two friends. The speaker says: It is gone. [Interaction] What would you say?"
    )
    polar = {
        "id": "a",
        "task": "msa",
        "subtitle": "x",
        "label": "weakly good",
        "candidates": ["weakly good", "bad"],
    }
    assert (
        "weakly good, bad."
        in open_dataset("manifest", write(polar)).sample(0, "msa", random.Random(0)).question
    )


BAD = [
    ("{", "not JSON"),
    ("[]", "not an object but list"),
    ({"id": "a", "task": "mer", "label": "sad"}, "nothing to answer from; give video, audio or subtitle"),
    ({"subtitle": "x", "label": "sad", "task": "mer"}, "id is missing"),
    ({"id": "a", "subtitle": "x"}, "task is missing"),
    ({**LINES[0], "task": "mre"}, "task 'mre' does not exist; use msa, mer"),
    ({**LINES[0], "lable": "x"}, "unknown key 'lable'; known are id, task"),
    ({**LINES[0], "label": 3}, "label: is 3; must be text"),
    ({**LINES[0], "label": " "}, "label: is empty"),
    ({**LINES[0], "start": True}, "start: is true; must be a number"),
    ({**LINES[0], "start": 2, "end": 1}, "start 2 and end 1: must be seconds"),
    ({**LINES[0], "label": "glum"}, "label 'glum' is none of angry, disgusted"),
    ({**LINES[0], "video": "no.mp4"}, "video: no such file 'no.mp4'; paths are relative"),
    ({**LINES[2], "labels": ["sad", 1]}, "labels: must be a list of words"),
    ({"id": "a", "subtitle": "x", "task": "eri"}, "no answer to eri; give reason"),
    ({**LINES[5], "chain": {"event": "x"}}, "chain: must hold the texts event, emotion, cause, goal"),
    ({k: v for k, v in LINES[5].items() if k != "reply"}, "reply is missing"),
    ({**LINES[6], "answer": "sad###"}, "answer: holds '###'"),
    ({**LINES[5], "history": ["x"]}, "history: must be a list of"),
    ({**LINES[0], "context": "Two friends."}, "context: belongs to erg, mer does not read it"),
    ('{"id": ' + "9" * 5000 + "}", "not JSON"),
]


@pytest.mark.parametrize(("line", "complaint"), BAD)
def test_complaints(write, line, complaint, capsys):
    path = write(LINES[7], "", line)
    assert main(["data", "validate", str(path)]) == 1
    message = capsys.readouterr().err
    assert f"{path}: line 3: " in message and complaint in message
    with pytest.raises(ValueError, match="line 3"):
        open_dataset("manifest", path)


def test_every_complaint_is_listed(write, capsys):
    path = write(
        *(line for line, _ in BAD), LINES[7], LINES[7], {**LINES[7], "video": "clip.mp4", "question": "Q?"}
    )
    assert main(["data", "validate", str(path)]) == 1
    messages, n = capsys.readouterr().err.splitlines(), len(BAD)
    assert {int(line.split("line ")[1].split(":")[0]) for line in messages[:-1]} == {
        *range(1, n + 1),
        n + 2,
        n + 3,
    }
    assert f"id 'c' with task 'mer' stands in line {n + 1} already" in messages[-3]
    assert f"names other files in line {n + 1}" in messages[-2]
    with pytest.raises(ValueError, match=r"and \d+ more: nanoemox data validate lists them"):
        open_dataset("manifest", path)


def test_validate_says_what_is_there(write, capsys):
    assert main(["data", "validate", str(write(*LINES)), "--media"]) == 0
    assert "8 lines about 3 clips are fine (erg 1, eri 1, mer 3" in capsys.readouterr().out
    assert main(["data", "validate", str(write(""))]) == 1
    assert "no line in it" in capsys.readouterr().err
    assert main(["data", "validate", str(write("").parent / "none.jsonl")]) == 1
    assert main(["data", "validate", str(write("").parent)]) == 2


def test_validate_decodes_media(write, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no film at all")
    good = {**LINES[0], "audio": "clip.mp4"}
    path = write(good, {**LINES[0], "id": "z", "video": "bad.mp4"}, {**LINES[6], "start": 900, "end": 901})
    assert main(["data", "validate", str(path)]) == 0
    assert main(["data", "validate", str(path), "--media"]) == 1
    message = capsys.readouterr().err
    assert (
        "line 2: video: " in message
        and "bad.mp4" in message
        and "line 3: video: " in message
        and "line 1:" not in message
    )


def test_read_sample_gives_what_the_set_needs(write):
    data = open_dataset("manifest", write({**LINES[0], "start": 0.2, "end": 1.4}, LINES[7]))
    sample = data.sample(0, "mer", random.Random(0))
    clip = read_sample(sample, "multiface_audio_face_frame_text")
    assert (
        clip.frames.shape == (8, 3, 224, 224)
        and clip.audio.shape == (8, 32000)
        and clip.subtitle == "It is gone."
    )
    assert clip.duration == pytest.approx(1.2) and min(clip.frame_times) >= 0.2
    clip = read_sample(sample, "face_frame")
    assert (
        clip.frames is not None and clip.audio is None and clip.subtitle is None and clip.window_starts == []
    )
    clip = read_sample(sample, "audio_text")
    assert clip.frames is None and clip.audio is not None and clip.subtitle
    words = data.sample(1, "mer", random.Random(0))
    clip = read_sample(words, "textonly")
    assert (clip.frames, clip.audio, clip.subtitle) == (None, None, "Well.")
    with pytest.raises(MediaError, match="c: no file with frames, which modality set face_frame needs"):
        read_sample(words, "face_frame")
    with pytest.raises(UsageError, match="modality set 'all' does not exist"):
        read_sample(words, "all")


def test_a_trusted_file_reads_the_same(write, tmp_path):
    sample = open_dataset("manifest", write({**LINES[0], "start": 0.2})).sample(0, "mer", random.Random(0))
    here, there = (read_sample(sample, "multiface_audio_face_frame_text", trusted=t) for t in (True, False))
    assert (here.frames == there.frames).all() and (here.audio == there.audio).all()
    assert {**vars(here), "frames": 0, "audio": 0, "read_seconds": 0} == {
        **vars(there), "frames": 0, "audio": 0, "read_seconds": 0,
    }  # fmt: skip
    (tmp_path / "clip.mp4").write_bytes(b"no film at all")
    with pytest.raises(MediaError, match="clip.mp4: not a media file"):
        read_sample(sample, "face_frame", trusted=True)
    (tmp_path / "clip.mp4").unlink()
    for trusted in (True, False):
        with pytest.raises(MediaError, match="clip.mp4: no such file"):
            read_sample(sample, "face_frame", trusted=trusted)


def test_read_sample_tells_a_missing_stream(tmp_path):
    from clips import tone, write_wav

    file = write_wav(tmp_path / "a.wav", (tone(16000, 16000)[None] * 32767).astype("int16"), 16000)
    path = tmp_path / "m.jsonl"
    path.write_text(
        json.dumps({"id": "a", "video": "a.wav", "audio": "a.wav", "task": "mer", "label": "sad"}) + "\n"
    )
    sample = open_dataset("manifest", path).sample(0, "mer", random.Random(0))
    assert read_sample(sample, "audioonly").audio is not None
    with pytest.raises(
        MediaError, match=f"{file.name}: no frames in it, which modality set face_frame needs"
    ):
        read_sample(sample, "face_frame")
