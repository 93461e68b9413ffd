"""Checks of one line of a manifest (docs/data.md section 8). Every message says what to do."""

import json
import math
from collections.abc import Iterator
from typing import Any

from ...tasks import TASKS

CHAIN = ("event", "emotion", "cause", "goal")
_TEXT, _NUMBER = (str,), (int, float)
# Key -> types of its value.
KEYS: dict[str, tuple[type, ...]] = {
    "id": _TEXT,
    "task": _TEXT,
    "video": _TEXT,
    "audio": _TEXT,
    "subtitle": _TEXT,
    "start": _NUMBER,
    "end": _NUMBER,
    "question": _TEXT,
    "answer": _TEXT,
    "label": _TEXT,
    "labels": (list,),
    "candidates": (list,),
    "reason": _TEXT,
    "chain": (dict,),
    "reply": _TEXT,
    "context": _TEXT,
    "history": (list,),
    "meta": (dict,),
}
# Task -> the key that its answer is made of.
_ANSWER_KEYS = {
    "msa": "label",
    "mer": "label",
    "mir": "label",
    "ov-mer": "labels",
    "eri": "reason",
    "erg": "chain",
}
_MAY_BE_EMPTY = {"subtitle", "history", "meta", "context"}
_TYPE_NAMES = {str: "text", int: "a number", list: "a list", dict: "an object"}


def parse_line(text: str) -> tuple[dict[str, Any], list[str]]:
    """The object of a line, without keys that are null, and its problems."""
    try:
        values = json.loads(text)
    except RecursionError:
        return {}, ["not JSON (nested too deeply); write one whole object a line"]
    except ValueError as error:
        return {}, [f"not JSON ({getattr(error, 'msg', error)}); write one whole object a line"]
    if not isinstance(values, dict):
        return {}, [f"not an object but {type(values).__name__}; write {{...}}"]
    values = {key: value for key, value in values.items() if value is not None}
    problems = [problem for key, value in values.items() if (problem := _check_value(key, value))]
    return values, problems or list(_check(values))


def _check_value(key: str, value: Any) -> str:
    """The problem of one key, "" if there is none."""
    if key not in KEYS:
        return f"unknown key {key!r}; known are {', '.join(KEYS)}"
    if not isinstance(value, KEYS[key]) or isinstance(value, bool):
        return f"{key}: is {json.dumps(value):.40}; must be {_TYPE_NAMES[KEYS[key][0]]}"
    is_empty = not value.strip() if isinstance(value, str) else value in ([], {})
    if is_empty and key not in _MAY_BE_EMPTY:
        return f"{key}: is empty; fill it in or leave it out"
    if isinstance(value, str) and "###" in value:
        return f"{key}: holds '###', which ends an answer; take it out"
    return ""


def _check(values: dict[str, Any]) -> Iterator[str]:
    """Problems of a line whose keys are known and have values of the right type."""
    yield from (f"{key} is missing; every line needs it" for key in ("id", "task") if key not in values)
    if not any(values.get(key) for key in ("video", "audio", "subtitle")):
        yield "nothing to answer from; give video, audio or subtitle"
    start, end = values.get("start", 0), values.get("end", math.inf)
    if not 0 <= start < end or start == math.inf or values.get("end") == math.inf:
        seconds = f"start {values.get('start')} and end {values.get('end')}"
        yield f"{seconds}: must be seconds with 0 <= start < end"
    for key in ("labels", "candidates"):
        if not all(_is_word(item) for item in values.get(key, [])):
            yield f"{key}: must be a list of words"
            return
    for turn in values.get("history", []):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "utterance")):
            yield 'history: must be a list of {"role": text, "utterance": text}'
    if "task" in values:
        yield from _check_task(values)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_task(values: dict[str, Any]) -> Iterator[str]:
    """Problems of the keys that depend on the task."""
    task = values["task"]
    if task not in TASKS:
        yield f"task {task!r} does not exist; use {', '.join(TASKS)}"
        return
    for key in ("context", "history"):
        if key in values and task != "erg":
            yield f"{key}: belongs to erg, {task} does not read it; put the words into subtitle"
    answer_key = _ANSWER_KEYS[task]
    if "answer" not in values and answer_key not in values:
        yield f"no answer to {task}; give {answer_key}, or the whole text as answer"
    if "label" in values and answer_key == "label":
        candidates = values.get("candidates") or list(TASKS[task].labels)
        if values["label"].lower() not in [candidate.lower() for candidate in candidates]:
            is_open = "candidates" in values or task != "msa"
            advice = "list it in candidates" if is_open else "choose one of them"
            yield f"label {values['label']!r} is none of {', '.join(candidates)}; {advice}"
    if task == "erg" and "chain" in values:
        if set(values["chain"]) != set(CHAIN) or not all(map(_is_word, values["chain"].values())):
            yield f"chain: must hold the texts {', '.join(CHAIN)}"
        if "answer" not in values and "reply" not in values:
            yield "reply is missing; a chain needs its reply"
