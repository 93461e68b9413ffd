"""Own data without code: a JSONL file, one question about one clip a line.

    {"id": "a1", "video": "clips/a1.mp4", "audio": "a1.wav", "subtitle": "I am fine.", "start": 0.5, "end": 3,
     "task": "mer", "label": "sad"}

`id` and `task` are needed, and one of `video`, `audio` and `subtitle`; paths are relative to the manifest's folder.
`question` replaces the task's own. What the answer is made of: `answer`, the whole text, for any task; else `label`
for msa, mer and mir (of `candidates`, default the task's labels), `labels` for ov-mer, `reason` for eri, and for erg
`chain` (an object of event, emotion, cause and goal) with `reply`. erg also takes `context`, and `history`, a list of
{"role", "utterance"}. `meta` is an object that is kept for people.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...tasks import TASKS
from .. import questions
from ..files import check_split, read_text
from ..record import Sample

CHAIN = ("event", "emotion", "cause", "goal")
_TEXT, _NUMBER = (str,), (int, float)
KEYS: dict[str, tuple[type, ...]] = {
    "id": _TEXT, "task": _TEXT, "video": _TEXT, "audio": _TEXT, "subtitle": _TEXT, "start": _NUMBER, "end": _NUMBER,
    "question": _TEXT, "answer": _TEXT, "label": _TEXT, "labels": (list,), "candidates": (list,), "reason": _TEXT,
    "chain": (dict,), "reply": _TEXT, "context": _TEXT, "history": (list,), "meta": (dict,),
}  # fmt: skip
_NEEDS = {"msa": "label", "mer": "label", "mir": "label", "ov-mer": "labels", "eri": "reason", "erg": "chain"}
_MAY_BE_EMPTY = {"subtitle", "history", "meta", "context"}
_KINDS = {str: "text", int: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Entry:
    """One line of a manifest that has been found good."""

    line: int
    values: dict[str, Any]
    video: Path | None
    audio: Path | None

    def sample(self, dataset: str, rng: random.Random) -> Sample:
        v = self.values
        question, answer = _worded(v, rng)
        history = (
            "\n".join(f"{turn['role']}: {turn['utterance']}" for turn in v["history"])
            if "history" in v
            else None
        )
        return Sample(
            v["id"], dataset, v["task"], question, answer, v.get("subtitle", "") if history is None else history,
            history is not None, self.video, self.audio, v.get("start"), v.get("end"),
        )  # fmt: skip


def _worded(v: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    task = v["task"]
    made = ("", v.get("answer", ""))
    if task == "mer" and "label" in v:
        made = questions.emotion(v["label"], v.get("candidates") or TASKS["mer"].labels)
    elif task == "msa" and "label" in v:
        made = questions.sentiment(v["label"], v.get("candidates"))
    elif task == "mir" and "label" in v:
        made = questions.intent(v["label"], v.get("candidates") or TASKS["mir"].labels)
    elif task == "ov-mer":
        made = questions.open_labels(", ".join(v.get("labels", [])) or "neutral", rng)
    elif task == "eri":
        made = questions.reason(v.get("reason", ""), rng)
    elif task == "erg":
        chain = v.get("chain", dict.fromkeys(CHAIN, ""))
        current = v.get("subtitle") if v.get("context") or "history" in v else None
        words = v.get("context"), current, v.get("question")
        made = questions.reply([chain[key] for key in CHAIN], v.get("reply", ""), *words)
    own = "question" in v and task != "erg"  # there it stands behind the context
    question = TASKS[task].ask(v.get("candidates"), v.get("question")) if own else made[0]
    return question or TASKS[task].ask(v.get("candidates")), v.get("answer", made[1])


class Manifest:
    """The clips of a manifest; its answer types are its tasks. A clip without the wanted task gives way to the next."""

    def __init__(self, name: str, entries: list[Entry]):
        self.name = name
        self.clips: dict[str, dict[str, list[Entry]]] = {}
        for entry in entries:
            self.clips.setdefault(entry.values["id"], {}).setdefault(entry.values["task"], []).append(entry)
        self.names = list(self.clips)
        present = {entry.values["task"] for entry in entries}
        self.kinds = tuple(task for task in TASKS if task in present)

    def __len__(self) -> int:
        return len(self.names)

    def task_of(self, kind: str) -> str:
        if kind not in self.kinds:
            raise ValueError(f"{self.name}: no line has task {kind!r}; it has {', '.join(self.kinds)}")
        return kind

    def sample(self, index: int, kind: str, rng: random.Random) -> Sample:
        self.task_of(kind)
        while kind not in self.clips[self.names[index]]:
            index = (index + 1) % len(self.names)
        return rng.choice(self.clips[self.names[index]][kind]).sample(self.name, rng)

    def entries(self) -> Iterator[Entry]:
        for tasks in self.clips.values():
            for found in tasks.values():
                yield from found


def open_set(format: str, root: Path, split: str, name: str | None) -> Manifest:
    """A manifest file, or the folder of `manifest.jsonl` (train) and `manifest_test.jsonl` (test)."""
    check_split(format, split, ("train", "test"))
    path = root / ("manifest.jsonl" if split == "train" else "manifest_test.jsonl") if root.is_dir() else root
    entries, complaints = read(path)
    if complaints:
        more = (
            f" (and {len(complaints) - 1} more: nanoemox data validate lists them)"
            if len(complaints) > 1
            else ""
        )
        raise ValueError(complaints[0] + more)
    return Manifest(name or format, entries)


def read(path: Path) -> tuple[list[Entry], list[str]]:
    """Every good line, and a complaint about every bad one (several, if several things are wrong)."""
    entries: list[Entry] = []
    complaints: list[str] = []
    seen: dict[tuple[str, str, str], int] = {}
    clips: dict[str, Entry] = {}
    if path.is_dir():
        raise UsageError(f"{path}: a folder; name the manifest file in it")
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        values, wrong = _line(text)
        if not wrong:
            entry = _entry(number, values, path.parent)
            wrong = _check_files(entry, values)
            key = (values["id"], values["task"], values.get("question", ""))
            if key in seen:
                wrong.append(
                    f"id {key[0]!r} with task {key[1]!r} stands in line {seen[key]} already; remove one"
                )
            seen.setdefault(key, number)
            first = clips.setdefault(values["id"], entry)
            if (first.video, first.audio) != (entry.video, entry.audio):
                wrong.append(
                    f"id {key[0]!r} names other files in line {first.line}; give every clip its own id"
                )
            entries.append(entry)
        complaints += [f"{path}: line {number}: {problem}" for problem in wrong]
    if not entries and not complaints:
        complaints.append(f"{path}: no line in it; write one JSON object a line")
    return entries, complaints


def _entry(number: int, values: dict[str, Any], folder: Path) -> Entry:
    video, audio = (folder / values[key] if values.get(key) else None for key in ("video", "audio"))
    return Entry(number, values, video, audio)


def _check_files(entry: Entry, values: dict[str, Any]) -> list[str]:
    pairs = (("video", entry.video), ("audio", entry.audio))
    return [f"{key}: no such file {values[key]!r}; paths are relative to the manifest's folder"
            for key, file in pairs if file is not None and not file.is_file()]  # fmt: skip


def _line(text: str) -> tuple[dict[str, Any], list[str]]:
    """The object of a line without its nulls, and what is wrong with it."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
        return {}, [f"not JSON ({why}); write one whole object a line"]
    if not isinstance(values, dict):
        return {}, [f"not an object but {type(values).__name__}; write {{...}}"]
    values = {key: value for key, value in values.items() if value is not None}
    wrong = []
    for key, value in values.items():
        if key not in KEYS:
            wrong.append(f"unknown key {key!r}; known are {', '.join(KEYS)}")
        elif not isinstance(value, KEYS[key]) or isinstance(value, bool):
            wrong.append(f"{key}: is {json.dumps(value):.40}; must be {_KINDS[KEYS[key][0]]}")
        elif not value and value != 0 and key not in _MAY_BE_EMPTY or isinstance(value, str) and not (
            value.strip() or key in _MAY_BE_EMPTY
        ):  # fmt: skip
            wrong.append(f"{key}: is empty; fill it in or leave it out")
        elif isinstance(value, str) and "###" in value:
            wrong.append(f"{key}: holds '###', which ends an answer; take it out")
    return values, wrong or list(_check(values))


def _check(v: dict[str, Any]) -> Iterator[str]:
    """Complaints about a line whose keys are known and of the right kind."""
    yield from (f"{key} is missing; every line needs it" for key in ("id", "task") if key not in v)
    if not any(v.get(key) for key in ("video", "audio", "subtitle")):
        yield "nothing to answer from; give video, audio or subtitle"
    start, end = v.get("start", 0), v.get("end", float("inf"))
    if not 0 <= start < end or start == float("inf") or v.get("end") == float("inf"):
        yield f"start {v.get('start')} and end {v.get('end')}: must be seconds with 0 <= start < end"
    for key in ("labels", "candidates"):
        if not all(isinstance(item, str) and item.strip() for item in v.get(key, [])):
            yield f"{key}: must be a list of words"
            return
    for turn in v.get("history", []):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "utterance")):
            yield 'history: must be a list of {"role": text, "utterance": text}'
    task = v.get("task")
    if task is None:
        return
    if task not in TASKS:
        yield f"task {task!r} does not exist; use {', '.join(TASKS)}"
        return
    yield from (f"{key}: belongs to erg, {task} does not read it; put the words into subtitle"
                for key in ("context", "history") if key in v and task != "erg")  # fmt: skip
    if "answer" not in v and _NEEDS[task] not in v:
        yield f"no answer to {task}; give {_NEEDS[task]}, or the whole text as answer"
    if "label" in v and _NEEDS[task] == "label":
        candidates = v.get("candidates") or list(TASKS[task].labels)
        if v["label"].lower() not in [candidate.lower() for candidate in candidates]:
            way = "list it in candidates" if "candidates" in v or task != "msa" else "choose one of them"
            yield f"label {v['label']!r} is none of {', '.join(candidates)}; {way}"
    if task == "erg" and "chain" in v:
        if set(v["chain"]) != set(CHAIN) or not all(
            isinstance(t, str) and t.strip() for t in v["chain"].values()
        ):
            yield f"chain: must hold the texts {', '.join(CHAIN)}"
        if "answer" not in v and "reply" not in v:
            yield "reply is missing; a chain needs its reply"
