"""`nanoemox train`: run stages of the P2E curriculum, or describe them without training."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .common import Commands, say

if TYPE_CHECKING:
    from ..train.config import TrainConfig


def add_parser(commands: Commands) -> None:
    """Adds `train` to the subparsers of the command."""
    parser = commands.add_parser(
        "train",
        help="the P2E curriculum: perceive, fuse, empathise",
        description="Needs the training extra: pip install '.[train]' in the source folder.",
    )
    parser.set_defaults(run=_train)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, or a shipped one: paper, demo")
    parser.add_argument("--order", help="p2e, joint or reverse (default: the config's)")
    parser.add_argument(
        "--stage", metavar="S", help="this stage alone; those that it starts from must be finished"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: the config's)")
    parser.add_argument("--data", metavar="DIR", help="folder that the data sets' roots start from")
    parser.add_argument("--model", metavar="M", help="bundle to start from, instead of the config's model")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--dry-run", action="store_true", help="draw without media; print shares, sizes, memory, time"
    )
    parser.add_argument("--json", action="store_true", help="--dry-run as JSON")


def _train(args: argparse.Namespace) -> int:
    from ..train.config import read_config

    config = read_config(args.config, order=args.order, out=args.out, data=args.data)
    if args.model is not None:
        from dataclasses import replace  # imports much, which --help must not wait for

        config = replace(config, model=replace(config.model, bundle=args.model, components=None))
    if args.dry_run:
        return _dry_run(args, config)
    from ..train.datasets import open_datasets

    datasets = open_datasets(config, args.stage)
    try:
        from ..train.loop import Interrupted
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise UsageError(
            "training needs accelerate: pip install '.[train]' in the source folder of nanoemox"
        ) from error
    from ..data.clips import read_sample
    from ..train.run import train

    try:
        out = train(config, datasets, read_sample, stage=args.stage, resume=args.resume)
    except Interrupted as error:
        say(str(error))
        return 128 + error.number
    say(f"wrote {out}")
    return 0


def _dry_run(args: argparse.Namespace, config: "TrainConfig") -> int:
    from ..train.datasets import open_if_there
    from ..train.dryrun import describe, dry_run, stands

    stand_ins: dict[str, Any] = dict(stands(config))
    candidates = {name: open_if_there(config, name) for name in stand_ins}
    opened = {name: dataset for name, dataset in candidates.items() if dataset is not None}
    absent = [name for name in stand_ins if name not in opened]
    if absent:
        say(f"not on disk, so their declared sizes are used: {', '.join(absent)}")
    records = dry_run(config, stand_ins | opened, stage=args.stage)
    if not records:
        raise UsageError(f"stage {args.stage!r} is not in order {config.order}")
    print(json.dumps(records) if args.json else describe(records, config))
    return 0
