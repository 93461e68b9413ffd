"""What several commands share: the options that choose a model, messages and progress on stderr."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import NanoEmoX

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `nanoemox.load` to a command."""
    parser.add_argument(
        "--model", default="demo", metavar="M", help="demo (default), a bundle folder or a Hugging Face id"
    )
    parser.add_argument("--no-fast", action="store_true", help="the plain PyTorch reference")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", help="auto (default), bfloat16 or float32")
    parser.add_argument("--quantize", metavar="Q", help="int8 or int4: on a CPU, with the decode engine")


def load_model(args: argparse.Namespace) -> "NanoEmoX":
    """The model that the options of `add_model_options` name. Raises as `nanoemox.load` does."""
    from ..loading import load

    if args.model == "demo":
        say(
            "the demo model knows drawn faces and synthetic voices, nothing about people "
            "(choose a real one with --model)"
        )
    return load(
        args.model, fast=not args.no_fast, device=args.device, dtype=args.dtype, quantize=args.quantize
    )


def say(text: str) -> None:
    """Writes a line for the user to stderr; stdout holds results alone."""
    print(f"nanoemox: {text}", file=sys.stderr)


@contextmanager
def progress(activity: str) -> Iterator[None]:
    """Shows what is being done while it lasts, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{activity} ..."):
        yield
