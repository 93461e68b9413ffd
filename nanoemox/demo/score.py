"""How well a bundle answers about the synthetic test set: `python -m nanoemox.demo.score BUNDLE CORPUS [--json FILE]`.

The answers are generated as `nanoemox run` generates them and read by the tasks' own parsers. Each modality set is the
same clips with what it lacks taken away.
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
from ..generation.generate import Request, generate
from ..generation.stop import StopRule, postprocess
from ..loading import load
from ..media.clip import Clip
from ..model import NanoEmoX
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
_BATCH, _MOST = 16, 64  # clips encoded together; new tokens of an answer, enough for the emotion of a chain


@dataclass(frozen=True)
class Case:
    """A test clip and what is true of it."""

    clip: Clip
    sentiment: str
    emotion: str
    labels: list[str]
    intent: str
    incongruent: bool


def read_cases(corpus: Path, limit: int | None = None) -> list[Case]:
    dataset = open_dataset("manifest", corpus, split="test")
    assert isinstance(dataset, Manifest)
    cases = []
    for tasks in list(dataset.clips.values())[:limit]:
        of = {task: entries[0].values for task, entries in tasks.items()}
        entry = tasks["mer"][0]
        sample = replace(
            dataset.sample(0, "mer", random.Random(0)), video=entry.video, subtitle=of["mer"]["subtitle"]
        )
        clip = read_sample(sample, "multiface_audio_face_frame_text", trusted=True)
        cases.append(
            Case(
                clip,
                of["msa"]["label"],
                of["mer"]["label"],
                of["ov-mer"]["labels"],
                of["mir"]["label"],
                of["mer"]["meta"]["incongruent"],
            )  # fmt: skip
        )
    return cases


def answers(model: NanoEmoX, clips: Sequence[Clip], most: int = _MOST) -> Iterator[dict[str, Parsed]]:
    """What the model answers about each clip, all tasks of a batch of clips side by side, greedily."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    stop = StopRule(tokenizer)
    for low in range(0, len(clips), _BATCH):
        batch = clips[low : low + _BATCH]
        with torch.inference_mode():
            found: list[dict[str, Parsed]] = [{} for _ in batch]
            encoded = model.encode(batch)
            for name in _ASKED:
                task, requests = TASKS[name], []
                for row, clip in enumerate(batch):
                    ids = torch.tensor([model.prompt_ids(clip, name)])
                    one = replace(encoded, **{
                        key: value[row : row + 1] for key in ("visual", "speech", "face", "fusion")
                        if (value := getattr(encoded, key)) is not None
                    })  # fmt: skip
                    requests.append(Request(model.splice(ids, one)[0], min(task.max_new_tokens, most), stop))
                for row, result in enumerate(generate(model.language, requests)):
                    text = postprocess(tokenizer.decode(result.ids), tokenizer.bos, tokenizer.eos)
                    found[row][name] = task.parse(text, task.labels)
        yield from found


def measure(cases: Sequence[Case], said: Sequence[dict[str, Parsed]]) -> dict[str, float]:
    """Every measure in percent."""

    def percent(hits: list[bool]) -> float:
        return 100 * sum(hits) / len(hits)

    first = [{task: (parsed.labels or [""])[0] for task, parsed in one.items()} for one in said]
    return {
        "emotion": percent([a["mer"] == c.emotion for a, c in zip(first, cases, strict=True)]),
        "sentiment": 100 * weighted_f1([a["msa"] for a in first], [c.sentiment for c in cases]),
        "intent": percent([a["mir"] == c.intent for a, c in zip(first, cases, strict=True)]),
        "open labels": 100 * sum(
            set_f1(one["ov-mer"].labels, case.labels) for one, case in zip(said, cases, strict=True)
        ) / len(cases),
        "chain": percent([a["erg"] == c.emotion for a, c in zip(first, cases, strict=True)]),
    }  # fmt: skip


def weighted_f1(said: Sequence[str], true: Sequence[str]) -> float:
    """F1 of every class, weighted by how often it is true."""
    total = 0.0
    for label in set(true):
        hits = sum(s == t == label for s, t in zip(said, true, strict=True))
        total += true.count(label) * 2 * hits / (said.count(label) + true.count(label))
    return total / len(true)


def set_f1(said: Sequence[str], true: Sequence[str]) -> float:
    hits = len(set(said) & set(true))
    return 2 * hits / (len(set(said)) + len(set(true))) if said else 0.0


def score_model(model: NanoEmoX, cases: Sequence[Case], sets: Sequence[str] = tuple(SETS)) -> dict[str, Any]:
    """{"clips", "incongruent", "scores": {modality set: {measure: percent}}, "incongruent scores": the same}."""
    out: dict[str, Any] = {"clips": len(cases), "incongruent": sum(case.incongruent for case in cases)}
    out |= {"scores": {}, "incongruent scores": {}}
    for name in sets:
        said = list(answers(model, [replace(case.clip, **SETS[name]) for case in cases]))
        hard = [(case, one) for case, one in zip(cases, said, strict=True) if case.incongruent]
        out["scores"][name] = measure(cases, said)
        if hard:
            out["incongruent scores"][name] = measure([case for case, _ in hard], [one for _, one in hard])
    return out


def score_bundle(
    bundle: str | Path, cases: Sequence[Case], sets: Sequence[str] = tuple(SETS)
) -> dict[str, Any]:
    """`score_model` of a bundle, as `nanoemox run` loads it on a CPU."""
    return score_model(load(bundle, device="cpu"), cases, sets)


def table(scores: dict[str, Any]) -> str:
    """Markdown: a row a modality set, and under it the incongruent clips alone."""
    head = "| clips | shown | " + " | ".join(MEASURES.values()) + " |\n|---|---|" + "---:|" * len(MEASURES)
    rows = [head]
    for what, count in (("scores", scores["clips"]), ("incongruent scores", scores["incongruent"])):
        which = f"all {count}" if what == "scores" else f"{count} incongruent"
        for name, values in scores[what].items():
            rows.append(
                f"| {which} | {name} | " + " | ".join(f"{values[key]:.1f}" for key in MEASURES) + " |"
            )
    return "\n".join(rows) + "\n"


def main() -> None:
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
    except (ValueError, OSError) as error:
        sys.exit(f"nanoemox.demo.score: {error}")
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1) + "\n")
    sys.stdout.write(table(scores))


if __name__ == "__main__":
    main()
