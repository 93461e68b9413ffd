"""`nanoemox run`: answer a task about a clip."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .common import Commands, add_model_options, load_model, progress, say

if TYPE_CHECKING:
    from ..media.clip import Clip
    from ..model import NanoEmoX
    from ..tasks import Reply

_SAMPLE = Path(__file__).parents[1] / "demo" / "sample.mp4"  # its words are in sample.srt beside it


def add_parser(commands: Commands) -> None:
    """Adds `run` to the subparsers of the command."""
    parser = commands.add_parser("run", help="answer a task about a clip")
    parser.set_defaults(run=_run)
    parser.add_argument(
        "clip", nargs="?", metavar="CLIP", help="any media file that FFmpeg reads; default: the sample clip"
    )
    parser.add_argument("--task", default="mer", help="msa, mer, ov-mer, eri, mir, erg or all (default mer)")
    parser.add_argument("--subtitle", metavar="S", help="the words, or a file of them: .srt or .vtt")
    parser.add_argument("--start", type=float, metavar="SECONDS", help="read from here")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="read up to here")
    parser.add_argument("--question", help="ask this instead of the task's question")
    parser.add_argument("--labels", metavar="A,B,...", help="candidates for mer, msa or mir")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default by task, 32 to 512")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample among the K likeliest (default 0: all)",
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus of sampling (default 1)")
    parser.add_argument("--seed", type=int, help="of sampling")
    parser.add_argument("--json", action="store_true", help="one JSON object (an array for --task all)")
    add_model_options(parser)


def _run(args: argparse.Namespace) -> int:
    labels = _check_options(args)
    clip = _read_clip(args)
    with progress("loading the model"):
        model = load_model(args)
    with progress("answering"):
        replies = _answer(args, model, clip, labels)
    if args.json or args.task == "all":
        source = _SAMPLE.name if args.clip is None else args.clip
        identity = _identity(model)
        records = [_record(source, reply, identity) for reply in replies]
        print(json.dumps(records if args.task == "all" else records[0]))
    else:
        _print_text(replies[0])
    return 0


def _check_options(args: argparse.Namespace) -> list[str] | None:
    """Raises UsageError for a wrong option before anything is read; returns the candidates of --labels."""
    from ..tasks import TASKS, check_labels, get_task

    tasks = list(TASKS.values()) if args.task == "all" else [get_task(args.task)]
    labels = None if args.labels is None else check_labels(args.labels.split(","))
    if labels is not None and not any(task.labels for task in tasks):
        raise UsageError(f"--labels has no meaning for {args.task}: it is for mer, msa and mir")
    if args.task == "all" and (labels or args.question or args.temperature):
        raise UsageError(
            "--task all asks every task its own question, greedily: "
            "leave out --labels, --question, --temperature"
        )
    from ..generation.sampler import Sampler

    Sampler(args.temperature, args.top_p, args.seed, args.top_k)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    return labels


def _read_clip(args: argparse.Namespace) -> "Clip":
    from ..media.read import read_clip

    path, subtitle = args.clip, args.subtitle
    if path is None:
        say(f"no clip named, so the sample clip is used, with its words: {_SAMPLE.name}")
        path = _SAMPLE
        if subtitle is None:
            subtitle = _SAMPLE.with_suffix(".srt")
    with progress("reading the clip"):
        clip = read_clip(path, subtitle=subtitle, start=args.start, end=args.end)
    for note in clip.notes:
        say(f"{clip.source}: {note}")
    return clip


def _answer(
    args: argparse.Namespace, model: "NanoEmoX", clip: "Clip", labels: list[str] | None
) -> list["Reply"]:
    if args.task == "all":
        return list(model.answer_all(clip, max_new_tokens=args.max_new_tokens).values())
    reply = model.answer(
        clip,
        args.task,
        question=args.question,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        labels=labels,
    )
    return [reply]


def _identity(model: "NanoEmoX") -> dict[str, Any]:
    from ..bundle.folder import sha256

    assert model.source is not None  # it was loaded from a bundle
    return {
        "name": model.config.name,
        "sha256": sha256(model.source),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "fast": model.fast,
        "quantize": model.quantize,
    }


def _record(source: str, reply: "Reply", identity: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of one reply."""
    seconds = {stage: round(value, 4) for stage, value in reply.seconds.items()}
    return {"schema": 1, "source": source, **reply.to_dict(), "seconds": seconds, "model": identity}


def _print_text(reply: "Reply") -> None:
    print(reply.text)
    if reply.labels and reply.labels != [reply.text]:
        print(f"labels: {', '.join(reply.labels)}")
