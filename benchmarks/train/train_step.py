"""`python benchmarks/train/train_step.py`: time and memory of a training step, beside the dry run's estimate.

Random weights, parts of the sample clip as data. Prints a JSON line per stage; "seconds" is the median over
the second half of the steps.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from nanoemox.build import build_empty
from nanoemox.config import NanoEmoXConfig
from nanoemox.data import open_dataset
from nanoemox.data.clips import read_sample
from nanoemox.train.config import DatasetOptions, TrainConfig, read_config
from nanoemox.train.dryrun import estimate
from nanoemox.train.log import rows
from nanoemox.train.run import train
from nanoemox.train.stages import Source
from nanoemox.weights import random_bundle

CLIP = Path(__file__).parents[2] / "nanoemox" / "demo" / "sample.mp4"
CHAIN = {
    "event": "the train was missed",
    "emotion": "sad",
    "cause": "it left early",
    "goal": "to comfort the speaker",
}
REASON = "The brows are drawn together, the voice is slow and low, and the words speak of a loss. " * 3


def manifest(folder: Path, clips: int = 12) -> Path:
    """Write manifest.jsonl: parts of the sample clip, each with a reason and a reply. Returns the folder."""
    lines = []
    for i in range(clips):
        part = {
            "id": f"s{i}",
            "video": str(CLIP),
            "start": 0.05 * i,
            "end": 2.2 + 0.05 * i,
            "subtitle": "It left.",
        }
        lines.append({**part, "task": "eri", "reason": REASON})
        lines.append({**part, "task": "erg", "chain": CHAIN, "reply": "That sounds hard. I am here for you."})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def training_config(args: argparse.Namespace, bundle: Path, folder: Path) -> TrainConfig:
    """The paper's stages with `args.steps` steps each, all on the data set "own"."""
    paper = read_config("paper")
    own = (Source(set="own"),)
    stages = {
        name: replace(stage, data=own, profile="weights", init=(), epochs=1, steps=args.steps)
        for name, stage in paper.stages.items()
    }
    return replace(
        paper,
        stages=stages,
        datasets={"own": DatasetOptions(format="manifest")},
        model=replace(paper.model, bundle=str(bundle), components=None),
        precision=args.precision,
        batch=args.batch,
        cache=None if args.no_cache else str(folder / "cache"),
        gradient_checkpointing=args.gradient_checkpointing,
        fsdp=args.fsdp,
        liger=args.liger,
        out=str(folder / "out"),
    )


def measure(args: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """Train the stages one after the other in `folder`; yields a row per stage."""
    data = open_dataset("manifest", manifest(folder), name="own")
    config = training_config(args, random_bundle(args.preset, folder / "bundle"), folder)
    sizes = NanoEmoXConfig.preset(args.preset)
    empty = build_empty(sizes, args.preset)
    for name in args.stages.split(","):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        train(config, {"own": data}, read_sample, stage=name)
        log = list(rows(folder / "out" / name / "log.jsonl"))
        expected = estimate(empty, sizes, config, config.stages[name])
        step = "step" if args.no_cache else "step_with_cache"
        row = {
            "stage": name,
            "seconds": statistics.median(entry["seconds"] for entry in log[len(log) // 2 :]),
            "estimated_seconds": expected["seconds"][step],
            "estimated_bytes": expected["memory"]["total"],
        }
        if torch.cuda.is_available():
            row |= {"bytes": torch.cuda.max_memory_allocated(), "card": torch.cuda.get_device_name()}
        yield row | {"loss": [log[0]["loss"], log[-1]["loss"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="nano-emox-2.2b", help="sizes of the model")
    parser.add_argument("--steps", type=int, default=12, help="per stage")
    parser.add_argument("--batch", type=int, default=3, help="samples of a step")
    parser.add_argument("--stages", default="1-1,1-2,2,3", help="names, separated by commas")
    parser.add_argument("--precision", default="auto")
    for name in ("no-cache", "fsdp", "liger", "gradient-checkpointing"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(args, Path(folder)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
