"""`nanoemox train`: nothing heavy is imported before it is asked for."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..train.config import TrainConfig


def add_parser(commands: Any) -> None:
    """Adds `train` to the command's subparsers."""
    train = commands.add_parser(
        "train",
        help="the P2E curriculum: perceive, fuse, empathise",
        epilog="needs the extra nanoemox[train]",
    )
    train.set_defaults(run=_train)
    train.add_argument("--config", required=True, metavar="FILE", help="YAML, or a shipped one: paper, demo")
    train.add_argument("--order", help="p2e, joint or reverse (default: the config's)")
    train.add_argument(
        "--stage", metavar="S", help="this stage alone; those that it starts from must be finished"
    )
    train.add_argument("--out", metavar="DIR", help="folder of the run (default: the config's)")
    train.add_argument("--data", metavar="DIR", help="folder that the data sets' roots start from")
    train.add_argument("--model", metavar="M", help="bundle to start from, instead of the config's model")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument(
        "--dry-run", action="store_true", help="draw without media; print shares, sizes, memory, time"
    )
    train.add_argument("--json", action="store_true", help="--dry-run as JSON")


def _train(args: argparse.Namespace) -> int:
    from ..train.config import read_config

    config = read_config(args.config, order=args.order, out=args.out, data=args.data)
    if args.model is not None:
        from dataclasses import replace

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
        raise UsageError("training needs the extra: pip install 'nanoemox[train]'") from error
    from ..data.clips import read_sample
    from ..train.run import train

    try:
        out = train(config, datasets, read_sample, stage=args.stage, resume=args.resume)
    except Interrupted as error:
        _say(str(error))
        return 128 + error.number
    _say(f"wrote {out}")
    return 0


def _say(text: str) -> None:
    print(f"nanoemox: {text}", file=sys.stderr)


def _dry_run(args: argparse.Namespace, config: "TrainConfig") -> int:
    from ..train.datasets import open_if_there
    from ..train.dryrun import describe, dry_run, stands

    datasets: dict[str, Any] = dict(stands(config))
    opened = {name: found for name in datasets if (found := open_if_there(config, name)) is not None}
    if absent := [name for name in datasets if name not in opened]:
        _say(f"not on disk, so that their declared sizes are used: {', '.join(absent)}")
    records = dry_run(config, datasets | opened, stage=args.stage)
    if not records:
        raise UsageError(f"stage {args.stage!r} is not in order {config.order}")
    print(json.dumps(records) if args.json else describe(records, config))
    return 0
