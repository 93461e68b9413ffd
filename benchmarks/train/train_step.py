"""Memory and time of a training step of every stage, beside the dry run's estimate; random weights, the
sample clip.

    python benchmarks/train/train_step.py [--preset nano-emox-2.2b] [--steps 12] [--batch 3] [--no-cache]
    [--fsdp] [--liger]

Prints one JSON line a stage. Seconds are the median of the second half of the steps.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from nanoemox.build import build_empty
from nanoemox.config import NanoEmoXConfig
from nanoemox.data import open_dataset
from nanoemox.data.clips import read_sample
from nanoemox.train.config import DatasetOptions, read_config
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
    """Parts of the sample clip with a reason and a reply each."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano-emox-2.2b")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--stages", default="1-1,1-2,2,3")
    parser.add_argument("--precision", default="auto")
    for name in ("no-cache", "fsdp", "liger", "gradient-checkpointing"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    own = open_dataset("manifest", manifest(folder), name="own")
    paper = read_config("paper")
    stages = {
        name: replace(
            stage, data=(Source(set="own"),), profile="weights", init=(), epochs=1, steps=args.steps
        )
        for name, stage in paper.stages.items()
    }
    bundle = random_bundle(args.preset, folder / "bundle")
    config = replace(
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
    sizes = NanoEmoXConfig.preset(args.preset)
    empty = build_empty(sizes, args.preset)
    for name in args.stages.split(","):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        train(config, {"own": own}, read_sample, stage=name)
        read = list(rows(folder / "out" / name / "log.jsonl"))
        expected = estimate(empty, sizes, config, stages[name])
        key = "step" if args.no_cache else "step_with_cache"
        row = {"stage": name, "seconds": statistics.median(r["seconds"] for r in read[len(read) // 2 :])}
        row |= {"estimated_seconds": expected["seconds"][key], "estimated_bytes": expected["memory"]["total"]}
        if torch.cuda.is_available():
            row |= {"bytes": torch.cuda.max_memory_allocated(), "card": torch.cuda.get_device_name()}
        print(json.dumps(row | {"loss": [read[0]["loss"], read[-1]["loss"]]}), flush=True)


if __name__ == "__main__":
    main()
