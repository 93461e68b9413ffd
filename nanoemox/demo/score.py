"""Scores of a bundle on the synthetic test set: `python -m nanoemox.demo.score BUNDLE CORPUS [--json FILE]`.

Answers are generated as `nanoemox run` does, and parsed by the parsers of the tasks. A set that lacks a
stream has the same clips without that stream.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data import open_dataset, read_sample
from ..data.formats.manifest import Manifest
from ..errors import NanoEmoXError
from ..generation.generate import Request, generate
from ..generation.stop import StopRule, postprocess
from ..loading import load
from ..media.clip import Clip
from ..model import NanoEmoX
from ..modules.encoded import Encoded
from ..tasks import TASKS, Parsed

SETS: dict[str, dict[str, Any]] = {
    "everything": {},
    "without face": {"frames": None},
    "without voice": {"audio": None},
    "without words": {"subtitle": None},
}
MEASURES = {
    "emotion": "emotion accuracy", "sentiment": "sentiment F1 (weighted)", "intent": "intent accuracy",
    "open labels": "open-vocabulary F1 (exact words)", "chain": "replies whose chain names the emotion",
}  # fmt: skip
_ASKED = ("msa", "mer", "ov-mer", "mir", "erg")
_FIRST_LABEL = ("msa", "mer", "mir", "erg")  # tasks that are scored by the first label of the answer
_BATCH = 16  # clips that are encoded together
_MAX_NEW_TOKENS = 64  # of an answer; enough for the emotion of a chain


@dataclass(frozen=True)
class Case:
    """A test clip and its labels. `incongruent`: whether face, voice or words show another emotion."""

    clip: Clip
    sentiment: str
    emotion: str
    labels: list[str]
    intent: str
    incongruent: bool


def read_cases(corpus: Path, limit: int | None = None) -> list[Case]:
    """The test clips of a synthetic corpus, or the first `limit` of them. Raises DataError and MediaError."""
    dataset = open_dataset("manifest", corpus, split="test")
    assert isinstance(dataset, Manifest)
    cases = []
    for tasks in list(dataset.clips.values())[:limit]:
        values = {task: entries[0].values for task, entries in tasks.items()}
        sample = tasks["mer"][0].sample(dataset.name, random.Random(0))
        clip = read_sample(sample, "multiface_audio_face_frame_text", trusted=True)
        case = Case(
            clip=clip,
            sentiment=values["msa"]["label"],
            emotion=values["mer"]["label"],
            labels=values["ov-mer"]["labels"],
            intent=values["mir"]["label"],
            incongruent=values["mer"]["meta"]["incongruent"],
        )
        cases.append(case)
    return cases


def answers(
    model: NanoEmoX, clips: Sequence[Clip], max_new_tokens: int = _MAX_NEW_TOKENS
) -> Iterator[dict[str, Parsed]]:
    """Answer every task about every clip, greedily.

    Args:
        model: a loaded model with its tokenizer.
        clips: clips that have the same streams.
        max_new_tokens: limit of an answer, besides the task's own.

    Yields:
        Task -> parsed answer, for each clip.
    """
    assert model.tokenizer is not None
    stop = StopRule(model.tokenizer)
    for low in range(0, len(clips), _BATCH):
        batch = clips[low : low + _BATCH]
        parsed: list[dict[str, Parsed]] = [{} for _ in batch]
        with torch.inference_mode():
            encoded = model.encode(batch)
            for name in _ASKED:
                limit = min(TASKS[name].max_new_tokens, max_new_tokens)
                requests = []
                for row, clip in enumerate(batch):
                    ids = torch.tensor([model.prompt_ids(clip, name)])
                    embeds = model.splice(ids, _row(encoded, row))
                    requests.append(Request(embeds[0], limit, stop))
                for row, text in enumerate(_generate(model, requests)):
                    parsed[row][name] = TASKS[name].parse(text, TASKS[name].labels)
        yield from parsed


def _row(encoded: Encoded, row: int) -> Encoded:
    """The tokens of one clip of a batch."""
    tokens = {name: getattr(encoded, name) for name in ("visual", "speech", "face", "fusion")}
    rows = {name: value[row : row + 1] for name, value in tokens.items() if value is not None}
    return replace(encoded, **rows)


def _generate(model: NanoEmoX, requests: list[Request]) -> list[str]:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    results = generate(model.language, requests)
    return [postprocess(tokenizer.decode(result.ids), tokenizer.bos, tokenizer.eos) for result in results]


def measure(cases: Sequence[Case], answered: Sequence[dict[str, Parsed]]) -> dict[str, float]:
    """Every measure of MEASURES, in percent.

    Args:
        cases: the clips.
        answered: task -> parsed answer, for each clip.
    """
    first = {task: [(parsed[task].labels or [""])[0] for parsed in answered] for task in _FIRST_LABEL}
    sentiments = [case.sentiment for case in cases]
    emotions = [case.emotion for case in cases]
    intents = [case.intent for case in cases]
    set_scores = [
        set_f1(parsed["ov-mer"].labels, case.labels) for parsed, case in zip(answered, cases, strict=True)
    ]
    return {
        "emotion": _accuracy(first["mer"], emotions),
        "sentiment": 100 * weighted_f1(first["msa"], sentiments),
        "intent": _accuracy(first["mir"], intents),
        "open labels": 100 * sum(set_scores) / len(cases),
        "chain": _accuracy(first["erg"], emotions),
    }


def _accuracy(predicted: Sequence[str], true: Sequence[str]) -> float:
    """Percent of equal labels."""
    hits = [p == t for p, t in zip(predicted, true, strict=True)]
    return 100 * sum(hits) / len(hits)


def weighted_f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    """F1 of every class in 0..1, weighted by the number of its true labels."""
    total = 0.0
    for label in set(true):
        hits = sum(p == t == label for p, t in zip(predicted, true, strict=True))
        total += true.count(label) * 2 * hits / (predicted.count(label) + true.count(label))
    return total / len(true)


def set_f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    """F1 of two sets of labels, 0..1."""
    if not predicted:
        return 0.0
    hits = len(set(predicted) & set(true))
    return 2 * hits / (len(set(predicted)) + len(set(true)))


def score_model(model: NanoEmoX, cases: Sequence[Case], sets: Sequence[str] = tuple(SETS)) -> dict[str, Any]:
    """Score a model on the cases.

    Args:
        model: a loaded model.
        cases: of `read_cases`.
        sets: keys of SETS.

    Returns:
        clips and incongruent: numbers of clips; scores and incongruent scores: set -> measure -> percent.
    """
    incongruent = [case for case in cases if case.incongruent]
    scores: dict[str, dict[str, float]] = {}
    incongruent_scores: dict[str, dict[str, float]] = {}
    for name in sets:
        answered = list(answers(model, [replace(case.clip, **SETS[name]) for case in cases]))
        scores[name] = measure(cases, answered)
        if incongruent:
            chosen = [parsed for case, parsed in zip(cases, answered, strict=True) if case.incongruent]
            incongruent_scores[name] = measure(incongruent, chosen)
    return {
        "clips": len(cases),
        "incongruent": len(incongruent),
        "scores": scores,
        "incongruent scores": incongruent_scores,
    }


def score_bundle(
    bundle: str | Path, cases: Sequence[Case], sets: Sequence[str] = tuple(SETS)
) -> dict[str, Any]:
    """`score_model` of a bundle, loaded on the CPU as by `nanoemox run`."""
    return score_model(load(bundle, device="cpu"), cases, sets)


def table(scores: dict[str, Any]) -> str:
    """Scores as Markdown: a row per modality set, of all clips and then of the incongruent ones."""
    header = "| clips | shown | " + " | ".join(MEASURES.values()) + " |"
    rows = [header, "|---|---|" + "---:|" * len(MEASURES)]
    groups = (
        (f"all {scores['clips']}", scores["scores"]),
        (f"{scores['incongruent']} incongruent", scores["incongruent scores"]),
    )
    for group, by_set in groups:
        for name, values in by_set.items():
            cells = " | ".join(f"{values[key]:.1f}" for key in MEASURES)
            rows.append(f"| {group} | {name} | {cells} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nanoemox.demo.score", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("bundle")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N clips alone")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be at least 1, got {args.limit}")
    try:
        scores = score_bundle(args.bundle, read_cases(args.corpus, args.limit))
    except (NanoEmoXError, OSError) as error:
        sys.exit(f"nanoemox.demo.score: {error}")
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")
    sys.stdout.write(table(scores))


if __name__ == "__main__":
    main()
