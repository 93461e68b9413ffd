"""`nanoemox convert`: official checkpoints and their base models into one bundle."""

import argparse

from ..errors import UsageError
from .common import Commands, progress, say

_COMPONENTS = ("clip", "hubert", "facexformer", "qwen")


def add_parser(commands: Commands) -> None:
    """Adds `convert` to the subparsers of the command."""
    parser = commands.add_parser("convert", help="official checkpoints and base models into a bundle")
    parser.set_defaults(run=_convert)
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="FILE", help="official .pth files; later ones win"
    )
    parser.add_argument("--components", metavar="DIR", help="folder that holds the four base models")
    parser.add_argument("--clip", metavar="DIR", help="CLIP ViT-L/14, Hugging Face folder")
    parser.add_argument("--hubert", metavar="DIR", help="HuBERT-Large, Hugging Face folder")
    parser.add_argument("--facexformer", metavar="FILE", help="FaceXFormer checkpoint")
    parser.add_argument("--qwen", metavar="DIR", help="Qwen2.5-1.5B-Instruct, Hugging Face folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="the bundle to write")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 (default) or float32")
    parser.add_argument("--lora", default="keep", help="keep (default) or merge the adapters")


def _convert(args: argparse.Namespace) -> int:
    from ..weights import convert

    options = {name: getattr(args, name) for name in _COMPONENTS}
    paths = {name: path for name, path in options.items() if path}
    if bool(args.components) == bool(paths):
        raise UsageError("give either --components, or --clip, --hubert, --facexformer and --qwen")
    with progress("converting"):
        out = convert(
            checkpoint=args.checkpoint,
            components=args.components or paths,
            out=args.out,
            dtype=args.dtype,
            lora=args.lora,
        )
    say(f"wrote {out}")
    return 0
