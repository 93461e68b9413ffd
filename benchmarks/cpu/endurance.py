"""`python benchmarks/cpu/endurance.py [--requests 10000]`: many requests of one process, and what they leave
behind.

Greedy, drawn, batched, cancelled and failing requests in turn, of the demo's language model, on clips and on
prompts alone; prints resident memory and threads every tenth part. Ends with status 1 where either grew after
the first tenth, memory by more than 8 MiB."""

import argparse
import random
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.results import write
from cpu.memory import resident

import nanoemox
from nanoemox.generation.generate import Request, generate
from nanoemox.generation.sampler import Sampler
from nanoemox.media import Clip


class Failure(Exception):
    pass


def fail(ids: object, done: bool) -> None:
    raise Failure


def native_threads() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    model, chance = nanoemox.load("demo", fast=True, device="cpu"), random.Random(0)
    assert type(model.language).__name__ == "EngineLanguage"
    rows = []
    for index in range(args.requests):
        size, many = chance.randrange(1, 120), chance.choice((1, 1, 1, 2, 4))
        ids = torch.tensor([chance.randrange(400) for _ in range(size)])
        request = Request(model.language.embed(ids), chance.randrange(1, 12), lambda ids: False)
        kind = index % 5
        if kind == 1:
            request.sampler = Sampler(0.8, 0.9, index, 40)
        if kind == 2:
            request.watch = fail
        cancelled = None if kind != 3 else lambda: chance.random() < 0.3
        with suppress(Failure):
            generate(model.language, [request] * many, cancelled=cancelled)
        if kind == 4 and index % 100 == 4:
            model.answer_all(Clip(subtitle="You never listen."), max_new_tokens=4)
        if (index + 1) % (args.requests // 10) == 0:
            rows.append({"case": f"after {index + 1}", "resident_MiB": round(resident("VmRSS") / 2**20, 1),
                         "threads": native_threads(), "python_threads": threading.active_count(),
                         "slots": len(model.language._taken)})  # fmt: skip
            print(rows[-1], flush=True)
    if args.results:
        write(args.results, rows)
    first, last = rows[0], rows[-1]
    grown = (
        last["resident_MiB"] > first["resident_MiB"] + 8
        or last["threads"] > first["threads"]
        or last["slots"]
    )
    sys.exit("it grew" if grown else 0)


if __name__ == "__main__":
    main()
