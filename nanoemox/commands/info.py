"""`nanoemox info`: versions, devices, and what a model is."""

import argparse
import json
from typing import Any

from .common import Commands, add_model_options


def add_parser(commands: Commands) -> None:
    """Adds `info` to the subparsers of the command."""
    parser = commands.add_parser("info", help="versions, devices, and what a model is")
    parser.set_defaults(run=_info)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_model_options(parser)


def describe(model: str, *, fast: bool, device: str, dtype: str, quantize: str | None) -> dict[str, Any]:
    """Everything that `nanoemox info` shows, as values for JSON. It reads no weights.

    Args:
        model: "demo", a bundle folder or a Hugging Face id.
        fast, device, dtype, quantize: as for `nanoemox.load`.

    Raises:
        CheckpointError, UsageError: as `nanoemox.load` does.
    """
    from .description import describe_bundle  # imports torch, which --help must not wait for

    return describe_bundle(model, fast=fast, device=device, dtype=dtype, quantize=quantize)


def _info(args: argparse.Namespace) -> int:
    description = describe(
        args.model, fast=not args.no_fast, device=args.device, dtype=args.dtype, quantize=args.quantize
    )
    if args.json:
        print(json.dumps(description))
    else:
        for key, value in description.items():
            _print_entry(key, value)
    return 0


def _print_entry(key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            is_text = isinstance(entry, str)
            print(f"{key:<14}{name}: {entry}" if is_text else f"  {name:<32}{entry:>15,}")
        return
    if isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, list):
        text = ", ".join(value)
    else:
        text = str(value)
    print(f"{key:<14}{text}")
