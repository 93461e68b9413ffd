"""The `nanoemox` command: its parser and its exit codes. Results go to stdout, everything else to stderr."""

import argparse
import os
import signal
import sys
import warnings
from typing import Any, NoReturn

from . import __version__
from .commands import convert, data, info, run, train
from .commands.common import say
from .errors import CheckpointError, NanoEmoXError, UsageError

FAILURE, USAGE, WEIGHTS = 1, 2, 4  # a command that succeeds returns 0
_EPILOG = "exit codes: 0 ok, 1 failure, 2 usage, 4 missing or wrong weights"


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line. Subparsers are of the same class, so every command has --traceback."""

    def __init__(self, **options: Any):
        super().__init__(epilog=_EPILOG, **options)
        # A default would overwrite what was given before the name of the command.
        self.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show where in the code an error comes from",
        )

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nanoemox", description="Emotion, intent and empathy from a clip.")
    parser.add_argument("--version", action="version", version=f"nanoemox {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (run, info, convert, train, data):
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return its exit code."""
    _repair_streams()
    args = _parser().parse_args(argv)
    _silence_libraries()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        if getattr(args, "traceback", False):
            import traceback

            traceback.print_exception(error)
        return _report(error)


def _report(error: BaseException) -> int:
    """Tell the user about an error in one line; returns the exit code."""
    if isinstance(error, NanoEmoXError):
        return _fail(str(error), _code_of(error))
    if _is_out_of_memory(error):
        return _fail("not enough memory for this model; choose a smaller one or --dtype bfloat16", FAILURE)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return _fail(f"{error.filename}: {reason}" if error.filename else reason, FAILURE)
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted", 128 + signal.SIGINT)
    kind = type(error).__name__
    return _fail(f"a bug in nanoemox, {kind}: {error} (--traceback shows where; please report it)", FAILURE)


def _code_of(error: NanoEmoXError) -> int:
    if isinstance(error, UsageError):
        return USAGE
    return WEIGHTS if isinstance(error, CheckpointError) else FAILURE


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_gpu or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _fail(message: str, code: int) -> int:
    say(" ".join(message.split()))
    return code


def _exit_on_signal(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # an exception, so that clean-up runs


def _silence_libraries() -> None:
    """Keep messages of libraries off stderr, where the user looks for ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")


def _repair_streams() -> None:
    """Discard what is written to a closed stream; escape characters that the terminal cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
