"""Every format against the official reader of its files, and against malformed files."""

import json
import os
import pickle
import random
import shutil
import zipfile

import numpy as np
import pytest
from paths import SHARED

from nanoemox.data import FORMATS, open_dataset
from nanoemox.data.labels import read_archive
from nanoemox.errors import UsageError
from nanoemox.tasks import TASKS, pick_label

# expected.json's name -> our format, folder
SETS = {
    "crema_d": ("crema_d", "crema_d"),
    "m3ed": ("m3ed", "m3ed"),
    "caer_ferv39k": ("caer_ferv39k", "caer_ferv39k"),
    "mintrec": ("mintrec", "mintrec"),
    "mintrec2": ("mintrec2", "mintrec2"),
    "mercaptionplus": ("mercaptionplus", "mer2025"),
    "ovmerd_train": ("ovmerd", "mer2025"),
    "merr": ("merr_fine", "merr"),
    "avamerg": ("avamerg", "avamerg"),
    "emer": ("emer", "emer"),
    "mer2023": ("mer2023", "mer2023"),
    "mer2024": ("mer2024", "mer2024"),
    "meld": ("meld", "meld"),
    "iemocap": ("iemocap", "iemocap"),
    "cmumosi": ("cmumosi", "cmumosi"),
    "cmumosei": ("cmumosei", "cmumosei"),
    "sims": ("sims", "sims"),
    "simsv2": ("simsv2", "simsv2"),
}

NO_TEST = ("crema_d", "m3ed", "caer_ferv39k", "merr", "mercaptionplus", "ovmerd_train")


def test_every_set_with_expectations_is_tried(packed):
    assert set(SETS) == set(packed["expected"])
    assert {format for format, _ in SETS.values()} | {"ovmerd_plus", "manifest"} == set(FORMATS)


@pytest.mark.parametrize("key", SETS)
def test_records_are_those_of_the_official_reader(key, annotations, packed):
    format, folder = SETS[key]
    expected = packed["expected"][key]
    data = open_dataset(format, annotations / folder, split="test" if key == "emer" else "train")
    assert len(data) == expected["n_train"]
    for record, expected_record in zip(data.records, expected["train_records"], strict=True):
        got = {"name": record.name, "subtitle": record.subtitle, **record.fields}
        assert {name: got[name] for name in expected_record} == expected_record
    assert list(data.kinds) == expected["label_types"]
    if "candidate_labels" in expected:
        assert sorted(data.candidates) == expected["candidate_labels"]


@pytest.mark.parametrize("key", [key for key in SETS if key not in NO_TEST])
def test_the_test_part_is_the_official_one(key, annotations, packed):
    format, folder = SETS[key]
    expected = packed["expected"][key]
    data = open_dataset(format, annotations / folder, split="test")
    assert [record.name for record in data.records] == expected["test_names"]
    field = {"mintrec": "intent", "mintrec2": "intent"}.get(
        key, "valence" if key[:3] in ("cmu", "sim") else "onehot"
    )
    for record in data.records:
        if key == "avamerg":
            turns = expected["name2subtitle"][record.name]
            assert record.subtitle == "\n".join(f"{turn['role']}: {turn['utterance']}" for turn in turns)
        else:
            assert record.subtitle == expected["name2subtitle"][record.name]
            if truth := expected.get("test_name2gt"):
                index = {
                    "anger": 0,
                    "joy": 1,
                    "sadness": 2,
                    "neutral": 3,
                    "disgust": 4,
                    "fear": 5,
                    "surprise": 6,
                }
                got = record.fields[field]
                assert (index[got] if key == "meld" else got) == truth[record.name]


def test_media_paths(annotations, packed):
    """Relative to the root; the ending is found on disk, and a wave file only counts where it is there."""
    for key, (format, folder) in SETS.items():
        root, first = annotations / folder, packed["expected"][key].get("first_audio")
        data = open_dataset(format, root, split="test" if key == "emer" else "train")
        record = data.records[0]
        folders = data.media
        assert first is None or folders.audio / f"{record.media or record.name}.wav" == (
            root / first if folders.audio.name == "audio" else folders.audio / first.split("/")[1]
        )
    assert open_dataset("meld", annotations / "meld").media.video.name == "subvideo"
    assert open_dataset("avamerg", annotations / "avamerg", split="test").media.audio.name == "test_audio"


def test_the_ending_is_found(annotations, tmp_path):
    root = tmp_path / "caer"
    shutil.copytree(annotations / "caer_ferv39k", root)
    (root / "video").mkdir()
    (root / "video" / "caer_train_Happy_9001.avi").touch()
    data = open_dataset("caer_ferv39k", root)
    samples = [data.sample(i, "emotion_recognition", random.Random(0)) for i in range(2)]
    assert [sample.video.suffix for sample in samples] == [".avi", ".mp4"]
    assert samples[0].audio is None


@pytest.mark.parametrize("key", SETS)
def test_questions_and_answers(key, annotations):
    format, folder = SETS[key]
    data = open_dataset(format, annotations / folder, split="test" if key == "emer" else "train", name="mine")
    assert data.name == "mine"
    for kind in data.kinds:
        task = TASKS[data.task_of(kind)]
        for index, record in enumerate(data.records):
            drawn = {data.sample(index, kind, random.Random(seed)).question for seed in range(60)}
            assert len(drawn) == {"ov-mer": 5, "eri": 4}.get(task.name, 1)
            assert all(task.tag in question for question in drawn)
            sample = data.sample(index, kind, random.Random(0))
            assert (sample.task, sample.dataset, sample.subtitle) == (task.name, format, record.subtitle)
            assert "###" not in sample.answer and sample.answer == sample.answer.strip()
            check_answer(task, kind, sample, record, data.candidates)


def check_answer(task, kind, sample, record, candidates):
    fields = record.fields
    parsed = task.parse(sample.answer, candidates or task.labels)
    if task.name == "mer" and "onehot" in fields:
        assert sample.answer.endswith(fields["onehot"] + ".")
        assert not candidates or "wo_candidates" in kind or parsed.labels == [fields["onehot"]]
        assert ("wo_candidates" not in kind and bool(candidates)) == all(
            c in sample.question for c in candidates or "#"
        )
    elif task.name == "mer":
        assert sample.answer.endswith(f"{fields['speaker_emotion']}.") and "Context:" in sample.question
    elif task.name == "ov-mer":
        assert parsed.labels == fields["ovlabel"].split(", ")
    elif task.name == "eri":
        assert sample.answer == fields["description"]
    elif task.name == "mir":
        assert sample.answer == fields["intent"] and ", ".join(candidates) in sample.question
    elif task.name == "erg":
        assert sample.history and parsed.labels == [fields["speaker_emotion"]]
        assert parsed.reply == fields["response"] and f"</think>\n {fields['response']}" in sample.answer
        keys = ("event_scenario", "speaker_emotion", "emotion_cause", "goal_to_response")
        for line, order, name in zip(parsed.chain, ("first", "second", "third", "fourth"), keys, strict=True):
            assert line.lower().startswith(order) and fields[name] in line
    elif kind == "valence":
        assert f"{fields['valence']:.2f}" in sample.answer
    else:
        assert pick_label(sample.answer, TASKS["msa"].labels) == [fields["sentiment"]]


def test_ovmerd_plus(annotations):
    data = open_dataset("ovmerd_plus", annotations / "ovmerdplus", split="test")
    assert [(r.name, r.fields["ovlabel"], r.subtitle) for r in data.records] == [
        ("sample_91000001", "proud, happy", "I finished the marathon."),
        ("sample_91000002", "worried", ""),
    ]


def test_what_is_not_there_is_named(annotations, tmp_path):
    with pytest.raises(UsageError, match="data format 'mosi' does not exist: use crema_d"):
        open_dataset("mosi", tmp_path)
    with pytest.raises(UsageError, match="crema_d has no part 'test': use train"):
        open_dataset("crema_d", annotations / "crema_d", split="test")
    with pytest.raises(UsageError, match="has no option 'colour'"):
        open_dataset("crema_d", annotations / "crema_d", colour="red")
    with pytest.raises(
        ValueError, match="v_test_v5_0.json: no such file"
    ):  # and not the training file instead
        shutil.copy(annotations / "avamerg" / "train.json", tmp_path)
        open_dataset("avamerg", tmp_path, split="test")
    with pytest.raises(
        ValueError, match="answer type 'label' does not exist; it offers description, ovlabel"
    ):
        open_dataset("merr_fine", annotations / "merr").task_of("label")


def item(user="", assistant="sad", path="a/b.wav"):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": [path]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[", "line 1: not JSON"),
        ("{}", "must hold an array"),
        ("[1]", "item 1: is 1, must be an object"),
        (
            json.dumps([item(), item(assistant=None)]),
            "item 2: content of the assistant: is missing, must be text",
        ),
        (json.dumps([{**item(), "audios": []}]), r"item 1: audios\[0\]: is missing"),
    ],
)
def test_bad_conversations(tmp_path, text, complaint):
    (tmp_path / "crema_d_annotations.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        open_dataset("crema_d", tmp_path)


def test_conversations_skip_and_replace(tmp_path):
    items = [
        item(path="x/one.wav"),
        {"messages": []},
        {"audios": ["two.wav"]},
        item("later", "happy", "C:\\y\\one.wav"),
    ]
    (tmp_path / "crema_d_annotations.json").write_text(json.dumps(items))
    (record,) = open_dataset("crema_d", tmp_path).records
    assert (record.name, record.subtitle, record.fields["onehot"]) == ("one", "later", "happy")


def test_bad_tables(annotations, tmp_path):
    root = tmp_path / "mer2025"
    shutil.copytree(annotations / "mer2025", root)
    (root / "track3_train_mercaptionplus.csv").write_text("name,reason\nsamplenew_90000001,why\n")
    with pytest.raises(ValueError, match="no row for 'samplenew_90000002' and 1 more"):
        open_dataset("mercaptionplus", root)
    (root / "track3_train_mercaptionplus.csv").write_text("name,cause\n")
    with pytest.raises(ValueError, match="column 'reason' is missing; it has name, cause"):
        open_dataset("mercaptionplus", root)
    (root / "track3_train_mercaptionplus.csv").write_bytes(b"name,reason\n\xff")
    with pytest.raises(ValueError, match="not in UTF-8"):
        open_dataset("mercaptionplus", root)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("a,[sad], quite\n", "line 2: more cells than columns"),
        ('a,"[sad]\nb,[calm]\n', "line 2: .*is every quote closed"),
        ("a,[sad]\n ,[calm]\n", "line 3: 'name' is empty"),
    ],
)
def test_rows_that_would_be_lost(annotations, tmp_path, rows, complaint):
    root = tmp_path / "ovmerdplus"
    shutil.copytree(annotations / "ovmerdplus", root)
    (root / "ovlabel.csv").write_text("name,openset\n" + rows)
    with pytest.raises(ValueError, match=f"ovlabel.csv: {complaint}"):
        open_dataset("ovmerd_plus", root, split="test")


def test_cells_hold_any_line_separator(annotations, tmp_path):
    root = tmp_path / "ovmerdplus"
    shutil.copytree(annotations / "ovmerdplus", root)
    (root / "ovlabel.csv").write_text("name,openset\r\na,[sad],\r\n", newline="")
    (root / "subtitle_eng.csv").write_text('name,sentence\na,"so\u2028it\nis"\n')
    (record,) = open_dataset("ovmerd_plus", root, split="test").records
    assert record.subtitle == "so\u2028it\nis"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def archive(path, value, shape=()):
    array = np.empty(shape, object)
    array[...] = value
    np.savez(path, train_corpus=array, test_corpus=array)
    return path


def test_archives_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="which could run code"):
        read_archive(archive(tmp_path / "a.npz", {"a": Evil()}))
    assert not (tmp_path / "made-by-a-pickle").exists()
    with pytest.raises(ValueError, match="zero-dimensional"):
        read_archive(archive(tmp_path / "a.npz", {"a": 1}, shape=(2,)))
    with pytest.raises(ValueError, match="must hold a dict"):
        read_archive(archive(tmp_path / "a.npz", {"a": [np.array([{}], object)]}))
    whole = archive(
        tmp_path / "a.npz", {"a": {"emo": np.int64(1), "val": np.float32(0.5), "x": np.arange(3.0)}}
    )
    array = read_archive(whole)["train_corpus"]["a"]
    assert array["emo"] == 1 and array["x"].tolist() == [0, 1, 2]
    for protocol in range(2, 6):
        value = pickle.dumps(
            np.array({"a": {"emo": np.int64(3), "val": np.float64(-10), "x": np.ones(2)}}), protocol
        )
        with zipfile.ZipFile(tmp_path / "p.npz", "w") as out:
            header = b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }"
            out.writestr("c.npy", header.ljust(79) + b"\n" + value)
        assert read_archive(tmp_path / "p.npz")["c"]["a"]["emo"] == 3
    whole.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(ValueError, match="not an .npz archive, or damaged"):
        read_archive(whole)


def test_bad_labels(annotations, tmp_path):
    root = tmp_path / "meld"
    shutil.copytree(annotations / "meld", root)
    archive(root / "label.npz", {"a": {"emo": 7, "val": -10}})
    with pytest.raises(ValueError, match=r"a: \{'emo': 7.*must lie in 0..6"):
        open_dataset("meld", root)
    archive(root / "label.npz", {"a": {"emo": 2.7, "val": -10}})
    with pytest.raises(ValueError, match="and be whole"):
        open_dataset("meld", root)
    archive(root / "label.npz", {"a": {"val": -10}})
    with pytest.raises(ValueError, match="'emo'"):
        open_dataset("meld", root)
    root = tmp_path / "iemocap"
    shutil.copytree(annotations / "iemocap", root)
    np.savez(root / "label_4way.npz", whole_corpus=np.array({"Ses01F_a": {"emo": 0}}, object))
    with pytest.raises(ValueError, match="sessions 1 to 5"):
        open_dataset("iemocap", root)


@pytest.mark.skipif(
    not (SHARED / "annotations_samples").is_dir(), reason="full fixtures are not beside this checkout"
)
def test_the_packed_copy_is_whole(packed):
    assert (
        json.loads((SHARED / "annotations_samples" / "expected.json").read_text())["datasets"]
        == packed["expected"]
    )
    for folder in {folder for _, folder in SETS.values()}:
        for path in (SHARED / "annotations_samples" / folder).iterdir():
            assert f"{folder}/{path.name}" in {**packed["texts"], **packed["archives"]}
