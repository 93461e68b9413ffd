"""`python benchmarks/cpu/endurance.py [--requests 10000]`: memory and threads after many requests.

Sends greedy, sampled, batched, cancelled and failing requests in turn to the demo's language model, about
clips and about prompts alone, in one process. Prints resident memory and threads after each tenth of them.
The exit status is 1 if, after the first tenth, memory grew by more than 8 MiB, the number of threads grew or
a slot of the decode engine was not returned.
"""

import random
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.results import Row, argument_parser, write
from cpu.memory import resident

import nanoemox
from nanoemox.fast.decode.cpu import EngineLanguage
from nanoemox.generation.generate import Request, generate
from nanoemox.generation.sampler import Sampler
from nanoemox.media import Clip


class Failure(Exception):
    """Raised by a request that is meant to fail."""


def fail(ids: object, done: bool) -> None:
    """What a failing request calls after its first token."""
    raise Failure


def native_threads() -> int:
    """Threads of this process, as the system counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads"))


def state(case: str, language: EngineLanguage) -> Row:
    """A row: memory, threads and the slots that are in use."""
    return {
        "case": case,
        "resident_MiB": round(resident("VmRSS") / 2**20, 1),
        "threads": native_threads(),
        "python_threads": threading.active_count(),
        "slots": len(language._used_slots),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    model = nanoemox.load("demo", fast=True, device="cpu")
    assert isinstance(model.language, EngineLanguage)
    chance = random.Random(0)
    rows: list[Row] = []
    for index in range(args.requests):
        size, copies = chance.randrange(1, 120), chance.choice((1, 1, 1, 2, 4))
        ids = torch.tensor([chance.randrange(400) for _ in range(size)])
        request = Request(model.language.embed(ids), chance.randrange(1, 12), lambda ids: False)
        kind = index % 5
        if kind == 1:
            request.sampler = Sampler(0.8, 0.9, index, 40)
        if kind == 2:
            request.watch = fail
        cancelled = None if kind != 3 else lambda: chance.random() < 0.3
        with suppress(Failure):
            generate(model.language, [request] * copies, cancelled=cancelled)
        if kind == 4 and index % 100 == 4:
            model.answer_all(Clip(subtitle="You never listen."), max_new_tokens=4)
        if (index + 1) % (args.requests // 10) == 0:
            rows.append(state(f"after {index + 1}", model.language))
            print(rows[-1], flush=True)
    if args.results:
        write(args.results, rows)
    first, last = rows[0], rows[-1]
    memory_grew = last["resident_MiB"] > first["resident_MiB"] + 8
    threads_grew = last["threads"] > first["threads"]
    if memory_grew or threads_grew or last["slots"]:
        sys.exit("memory, threads or slots grew")


if __name__ == "__main__":
    main()
