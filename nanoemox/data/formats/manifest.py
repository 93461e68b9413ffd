"""Own data without code: a JSONL file with one question about one clip per line (docs/data.md section 8).

{"id": "a1", "video": "clips/a1.mp4", "audio": "a1.wav", "subtitle": "I am fine.", "start": 0.5, "end": 3,
 "task": "mer", "label": "sad"}
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, UsageError
from ...tasks import TASKS
from .. import questions
from ..files import check_split, read_text
from ..record import Sample
from .manifest_line import CHAIN, parse_line


@dataclass(frozen=True)
class Entry:
    """One valid line of a manifest.

    Attributes:
        line: its number, from 1.
        values: its keys and values, without those that are null.
        video, audio: its files, relative paths resolved.
    """

    line: int
    values: dict[str, Any]
    video: Path | None
    audio: Path | None

    def sample(self, dataset: str, rng: random.Random) -> Sample:
        """The sample of this line; `rng` draws the wording of the question."""
        values = self.values
        question, answer = _question_and_answer(values, rng)
        subtitle = values.get("subtitle", "")
        if "history" in values:
            subtitle = "\n".join(f"{turn['role']}: {turn['utterance']}" for turn in values["history"])
        return Sample(
            name=values["id"],
            dataset=dataset,
            task=values["task"],
            question=question,
            answer=answer,
            subtitle=subtitle,
            history="history" in values,
            video=self.video,
            audio=self.audio,
            start=values.get("start"),
            end=values.get("end"),
        )


def _question_and_answer(values: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """Question and answer of a line, each replaced by the line's own where it has one."""
    task = values["task"]
    candidates = values.get("candidates")
    question, answer = _task_wording(values, rng)
    if not question or ("question" in values and task != "erg"):  # erg has it behind the context already
        question = TASKS[task].ask(candidates, values.get("question"))
    return question, values.get("answer", answer)


def _task_wording(values: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """Question and answer as `questions` words them; ("", "") for a label task with an answer of its own."""
    task = values["task"]
    candidates = values.get("candidates")
    if task == "ov-mer":
        return questions.open_labels(", ".join(values.get("labels", [])) or "neutral", rng)
    if task == "eri":
        return questions.reason(values.get("reason", ""), rng)
    if task == "erg":
        chain = values.get("chain", dict.fromkeys(CHAIN, ""))
        in_dialogue = bool(values.get("context")) or "history" in values
        return questions.reply(
            [chain[key] for key in CHAIN],
            values.get("reply", ""),
            values.get("context"),
            values.get("subtitle") if in_dialogue else None,
            values.get("question"),
        )
    if "label" not in values:
        return "", ""
    if task == "msa":
        return questions.sentiment(values["label"], candidates)
    if task == "mir":
        return questions.intent(values["label"], candidates or TASKS["mir"].labels)
    return questions.emotion(values["label"], candidates or TASKS["mer"].labels)


class Manifest:
    """The clips of a manifest, as a `Dataset`; its answer types are its tasks.

    Attributes:
        clips: id -> task -> entries.
    """

    def __init__(self, name: str, entries: list[Entry]):
        self.name = name
        self.clips: dict[str, dict[str, list[Entry]]] = {}
        for entry in entries:
            tasks = self.clips.setdefault(entry.values["id"], {})
            tasks.setdefault(entry.values["task"], []).append(entry)
        self.names = list(self.clips)
        present = {entry.values["task"] for entry in entries}
        self.kinds = tuple(task for task in TASKS if task in present)

    def __len__(self) -> int:
        return len(self.names)

    def task_of(self, kind: str) -> str:
        """The answer type itself. Raises UsageError for a task that no line has."""
        if kind not in self.kinds:
            raise UsageError(f"{self.name}: no line has task {kind!r}; it has {', '.join(self.kinds)}")
        return kind

    def sample(self, index: int, kind: str, rng: random.Random) -> Sample:
        """A question of this task about clip `index`, or about the next clip that has one."""
        self.task_of(kind)
        while kind not in self.clips[self.names[index]]:
            index = (index + 1) % len(self.names)
        entry = rng.choice(self.clips[self.names[index]][kind])
        return entry.sample(self.name, rng)

    def entries(self) -> Iterator[Entry]:
        """All entries, grouped by clip and task."""
        for tasks in self.clips.values():
            for entries in tasks.values():
                yield from entries


def open_set(format: str, root: Path, split: str, name: str | None) -> Manifest:
    """Open a manifest file, or a folder with `manifest.jsonl` (train) and `manifest_test.jsonl` (test).

    Raises DataError with the first problem of the file.
    """
    check_split(format, split, ("train", "test"))
    path = root
    if root.is_dir():
        path = root / ("manifest.jsonl" if split == "train" else "manifest_test.jsonl")
    entries, problems = read(path)
    if problems:
        more = ""
        if len(problems) > 1:
            more = f" (and {len(problems) - 1} more: nanoemox data validate lists them)"
        raise DataError(problems[0] + more)
    return Manifest(name or format, entries)


def read(path: Path) -> tuple[list[Entry], list[str]]:
    """Read a manifest.

    Returns:
        Every line that can be read, and one message per problem; a line may have several.
    """
    if path.is_dir():
        raise UsageError(f"{path}: a folder; name the manifest file in it")
    entries: list[Entry] = []
    problems: list[str] = []
    lines_by_key: dict[tuple[str, str, str], int] = {}
    first_by_id: dict[str, Entry] = {}
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        values, wrong = parse_line(text)
        if not wrong:
            entry = _entry(number, values, path.parent)
            wrong = _check_files(entry)
            key = (values["id"], values["task"], values.get("question", ""))
            if key in lines_by_key:
                earlier = lines_by_key[key]
                wrong.append(
                    f"id {key[0]!r} with task {key[1]!r} stands in line {earlier} already; remove one"
                )
            lines_by_key.setdefault(key, number)
            first = first_by_id.setdefault(values["id"], entry)
            if (first.video, first.audio) != (entry.video, entry.audio):
                wrong.append(
                    f"id {key[0]!r} names other files in line {first.line}; give every clip its own id"
                )
            entries.append(entry)
        problems += [f"{path}: line {number}: {problem}" for problem in wrong]
    if not entries and not problems:
        problems.append(f"{path}: no line in it; write one JSON object a line")
    return entries, problems


def _entry(number: int, values: dict[str, Any], folder: Path) -> Entry:
    video, audio = (folder / values[key] if values.get(key) else None for key in ("video", "audio"))
    return Entry(number, values, video, audio)


def _check_files(entry: Entry) -> list[str]:
    return [
        f"{key}: no such file {entry.values[key]!r}; paths are relative to the manifest's folder"
        for key, file in (("video", entry.video), ("audio", entry.audio))
        if file is not None and not file.is_file()
    ]
