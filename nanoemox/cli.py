"""The `nanoemox` command. Results go to stdout, everything else to stderr; torch is imported where it is needed."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .commands.data import add_parser as add_data_parser
from .commands.train import add_parser as add_train_parser
from .errors import CheckpointError, MediaError, UsageError

OK, FAILURE, USAGE, WEIGHTS = 0, 1, 2, 4
_EPILOG = "exit codes: 0 ok, 1 failure, 2 usage, 3 partial result, 4 missing or wrong weights"
_SAMPLE = Path(__file__).parent / "demo" / "sample.mp4"  # its words lie beside it, in sample.srt


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nanoemox", description="Emotion, intent and empathy from a clip.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"nanoemox {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="answer a task about a clip", epilog=_EPILOG)
    run.set_defaults(run=_run)
    run.add_argument(
        "clip", nargs="?", metavar="CLIP", help="any media file that FFmpeg reads; default: the sample clip"
    )
    run.add_argument("--task", default="mer", help="msa, mer, ov-mer, eri, mir, erg or all (default mer)")
    run.add_argument("--subtitle", metavar="S", help="the words, or a file of them: .srt or .vtt")
    run.add_argument("--start", type=float, metavar="SECONDS", help="read from here")
    run.add_argument("--end", type=float, metavar="SECONDS", help="read up to here")
    run.add_argument("--question", help="ask this instead of the task's question")
    run.add_argument("--labels", metavar="A,B,...", help="candidates for mer, msa or mir")
    run.add_argument("--max-new-tokens", type=int, metavar="N", help="default by task, 32 to 512")
    run.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    run.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (default 0: all)"
    )
    run.add_argument("--top-p", type=float, default=1.0, help="nucleus of sampling (default 1)")
    run.add_argument("--seed", type=int, help="of sampling")
    run.add_argument("--json", action="store_true", help="one JSON object (an array for --task all)")
    _add_model_options(run)

    info = commands.add_parser("info", help="versions, devices, and what a model is", epilog=_EPILOG)
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="one JSON object")
    _add_model_options(info)

    convert = commands.add_parser(
        "convert", help="official checkpoints and base models into a bundle", epilog=_EPILOG
    )
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="FILE", help="official .pth files; later ones win"
    )
    convert.add_argument("--components", metavar="DIR", help="folder that holds the four base models")
    convert.add_argument("--clip", metavar="DIR", help="CLIP ViT-L/14, Hugging Face folder")
    convert.add_argument("--hubert", metavar="DIR", help="HuBERT-Large, Hugging Face folder")
    convert.add_argument("--facexformer", metavar="FILE", help="FaceXFormer checkpoint")
    convert.add_argument("--qwen", metavar="DIR", help="Qwen2.5-1.5B-Instruct, Hugging Face folder")
    convert.add_argument("--out", required=True, metavar="DIR", help="the bundle to write")
    convert.add_argument("--dtype", default="bfloat16", help="bfloat16 (default) or float32")
    convert.add_argument("--lora", default="keep", help="keep (default) or merge the adapters")

    add_train_parser(commands)
    add_data_parser(commands)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="demo", metavar="M", help="demo (default), a bundle folder or a Hugging Face id"
    )
    parser.add_argument("--no-fast", action="store_true", help="the plain PyTorch reference")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", help="auto (default), bfloat16 or float32")
    parser.add_argument("--quantize", metavar="Q", help="int8 or int4: on a CPU, with the decode engine")


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """A line that comes and goes, where a person watches."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


def _say(text: str) -> None:
    print(f"nanoemox: {text}", file=sys.stderr)


def _load(args: argparse.Namespace) -> Any:
    from .loading import load

    if args.model == "demo":
        _say(
            "the demo model knows drawn faces and synthetic voices, nothing about people (--model takes a real one)"
        )
    return load(
        args.model, fast=not args.no_fast, device=args.device, dtype=args.dtype, quantize=args.quantize
    )


def _run(args: argparse.Namespace) -> int:
    from .tasks import TASKS, check_labels, get_task

    tasks = list(TASKS) if args.task == "all" else [get_task(args.task).name]
    labels = None if args.labels is None else check_labels(args.labels.split(","))
    if labels is not None and not any(TASKS[task].labels for task in tasks):
        raise UsageError(f"--labels means nothing for {args.task}: it is for mer, msa and mir")
    if args.task == "all" and (labels or args.question or args.temperature):
        raise UsageError(
            "--task all asks every task its own question, greedily: leave out --labels, --question, --temperature"
        )
    from .generation.sampler import Sampler
    from .media.read import read_clip

    Sampler(
        args.temperature, args.top_p, args.seed, args.top_k
    )  # a wrong option is told before anything is read
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    subtitle = args.subtitle
    if args.clip is None:
        _say(f"no clip named, so the sample clip is used, with its words: {_SAMPLE.name}")
        subtitle = str(_SAMPLE.with_suffix(".srt")) if subtitle is None else subtitle
    with _progress("reading the clip"):
        clip = read_clip(
            _SAMPLE if args.clip is None else args.clip, subtitle=subtitle, start=args.start, end=args.end
        )
    for note in clip.notes:
        _say(f"{clip.source}: {note}")
    with _progress("loading the model"):
        model = _load(args)
    with _progress("answering"):
        if args.task == "all":
            replies = list(model.answer_all(clip, max_new_tokens=args.max_new_tokens).values())
        else:
            replies = [
                model.answer(
                    clip,
                    args.task,
                    args.question,
                    args.max_new_tokens,
                    args.temperature,
                    args.top_p,
                    args.seed,
                    labels=labels,
                    top_k=args.top_k,
                )
            ]
    if args.json or args.task == "all":
        identity = _identity(model)
        records = [
            _record(_SAMPLE.name if args.clip is None else args.clip, reply, identity) for reply in replies
        ]
        print(json.dumps(records if args.task == "all" else records[0]))
    else:
        print(replies[0].text)
        if replies[0].labels and replies[0].labels != [replies[0].text]:
            print(f"labels: {', '.join(replies[0].labels)}")
    return OK


def _identity(model: Any) -> dict[str, Any]:
    from .bundle.folder import sha256

    return {
        "name": model.config.name,
        "sha256": sha256(model.source),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "fast": model.fast,
        "quantize": model.quantize,
    }


def _record(source: str, reply: Any, identity: dict[str, Any]) -> dict[str, Any]:
    seconds = {stage: round(value, 4) for stage, value in reply.seconds.items()}
    return {"schema": 1, "source": source, **reply.to_dict(), "seconds": seconds, "model": identity}


def _info(args: argparse.Namespace) -> int:
    from .commands.info import describe

    info = describe(
        args.model, fast=not args.no_fast, device=args.device, dtype=args.dtype, quantize=args.quantize
    )
    if args.json:
        print(json.dumps(info))
    else:
        for key, value in info.items():
            if isinstance(value, dict):
                for part, entry in value.items():
                    print(
                        f"{key:<14}{part}: {entry}" if isinstance(entry, str) else f"  {part:<32}{entry:>15,}"
                    )
            else:
                shown = (
                    f"{value:,}"
                    if isinstance(value, int)
                    else ", ".join(value)
                    if isinstance(value, list)
                    else value
                )
                print(f"{key:<14}{shown}")
    return OK


def _convert(args: argparse.Namespace) -> int:
    from .weights import convert

    named = {
        name: path for name in ("clip", "hubert", "facexformer", "qwen") if (path := getattr(args, name))
    }
    if bool(args.components) == bool(named):
        raise UsageError("give either --components, or --clip, --hubert, --facexformer and --qwen")
    with _progress("converting"):
        out = convert(
            checkpoint=args.checkpoint,
            components=args.components or named,
            out=args.out,
            dtype=args.dtype,
            lora=args.lora,
        )
    _say(f"wrote {out}")
    return OK


def _quiet() -> None:
    """Libraries keep their remarks to themselves; only ours are for the user."""
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code. A user's mistake is one line on stderr."""
    _open_streams()
    args = _parser().parse_args(argv)
    _quiet()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))  # so that clean-up runs
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(error, USAGE)
    except CheckpointError as error:
        return _fail(error, WEIGHTS)
    except (MediaError, ValueError) as error:
        return _fail(error, FAILURE)
    except MemoryError:
        return _fail("not enough memory for this model; choose a smaller one or --dtype bfloat16", FAILURE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)


def _open_streams() -> None:
    """A closed stream swallows what is written to it; a character that the terminal has not is spelled out."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: object, code: int) -> int:
    _say(" ".join(str(error).split()))
    return code


if __name__ == "__main__":
    sys.exit(main())
