"""`python benchmarks/cpu/answer.py`: a clip to an answer of 64 tokens, beside the reference.

Published size, random weights, adapters merged, one process. All forms and a probe of the read bandwidth take
turns; figures are medians over the rounds. Also times six tasks about one clip, by `answer_all` and one after
the other, and the part of a token's time that is spent outside of the decode engine. `--dtype fp32` times
encoders and prefill alone.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.bundles import encoder_bundle
from common.clocks import seconds
from common.results import Row, argument_parser, write
from cpu.language import DTYPES, probe_row, reference, twin

import nanoemox
from nanoemox.config import LanguageConfig
from nanoemox.generation.generate import Request, generate
from nanoemox.media import Clip
from nanoemox.model import NanoEmoX
from nanoemox.tasks import TASKS
from nanoemox_kernels import _native
from nanoemox_kernels.probe import ReadProbe

PROMPT, NEW, TASK_NEW = 220, 64, 32  # tokens: of the prompt, of an answer, of an answer to one of six tasks
SUBTITLE = "i have to go now the lamp is in the hall "


def random_clip() -> Clip:
    """Eight random frames and windows with a subtitle."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (8, 3, 224, 224), dtype=np.uint8)
    audio = random.normal(0, 0.1, (8, 32000)).astype(np.float32)
    return Clip(frames=frames, audio=audio, subtitle=SUBTITLE)


class Runner:
    """One form of the model and a clip; every call starts from the clip."""

    def __init__(self, model: NanoEmoX, clip: Clip):
        self.model, self.clip = model, clip
        ids = model.prompt_ids(clip, "mer")
        assert model.tokenizer is not None and len(ids) <= PROMPT, len(ids)
        filler = model.tokenizer.encode(SUBTITLE)
        self.ids = torch.tensor([ids + (filler * PROMPT)[: PROMPT - len(ids)]])

    def encode_and_prefill(self) -> None:
        encoded = self.model.encode(self.clip)
        with torch.inference_mode():
            _, state = self.model.language.start([self.model.splice(self.ids, encoded)[0]])
        self.model.language.end(state)

    def answer(self) -> None:
        encoded = self.model.encode(self.clip)
        with torch.inference_mode():
            request = Request(self.model.splice(self.ids, encoded)[0], NEW, lambda ids: False)
        (tokens,) = generate(self.model.language, [request])
        assert len(tokens.ids) == NEW


def time_part(
    part: Callable[[Runner], None], runners: dict[str, Runner], rounds: int, probe: ReadProbe
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each form in each round but the first, and the read bandwidth before each round."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    bandwidths = []
    for index in range(rounds + 1):
        bandwidths.append(probe.once())
        for name, runner in runners.items():
            taken = seconds(partial(part, runner))
            if index:
                times[name].append(taken)
    return times, bandwidths


def part_rows(part: str, times: dict[str, list[float]]) -> list[Row]:
    """A row per form: median time, and the median ratio of the reference's time to it."""
    rows: list[Row] = []
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["reference"], values, strict=True))
        rows.append({"case": f"{part}, {name}", "ms": statistics.median(values) * 1e3, "ratio": ratio})
    return rows


def task_row(name: str, runner: Runner) -> Row:
    """Six tasks about the clip: `answer_all`, and the ratio of six calls of `answer` to it."""
    model, clip = runner.model, runner.clip

    def one_by_one() -> None:
        for task in TASKS:
            model.answer(clip, task, max_new_tokens=TASK_NEW)

    together, separate = [], []
    for _ in range(2):
        together.append(seconds(lambda: model.answer_all(clip, max_new_tokens=TASK_NEW)))
        separate.append(seconds(one_by_one))
    ratio = statistics.median(b / a for a, b in zip(together, separate, strict=True))
    return {"case": f"six tasks, {name}", "answer_all_ms": statistics.median(together) * 1e3, "ratio": ratio}


def outside_the_engine(model: NanoEmoX, clip: Clip, rounds: int = 5) -> float:
    """Seconds per token of `model.answer` that are not spent in the C call."""
    engine_step, inside, outside = _native.engine_step, [], []

    def timed_step(*args: Any) -> None:
        inside.append(seconds(lambda: engine_step(*args)))

    with mock.patch.object(_native, "engine_step", timed_step):
        for _ in range(rounds):
            inside.clear()
            reply = model.answer(clip, "erg", max_new_tokens=NEW)
            outside.append((reply.seconds["decode"] - sum(inside)) / max(1, reply.tokens - 1))
    return statistics.median(outside)


def load_forms(bundle: Path, dtype: str) -> dict[str, Runner]:
    """The reference and its accelerated forms, all with one language model's weights."""
    quantizations: dict[str, str | None] = {"reference": None, dtype: None}
    if dtype == "bf16":
        quantizations["int8"] = "int8"
    language, clip = reference(LanguageConfig(), DTYPES[dtype]), random_clip()
    runners = {}
    for name, quantize in quantizations.items():
        fast = name != "reference"
        model = nanoemox.load(bundle, fast=fast, device="cpu", dtype=DTYPES[dtype], quantize=quantize)
        model.language = twin(language, quantize) if fast else language
        runners[name] = Runner(model, clip)
    return runners


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    parts = {"encode and prefill": Runner.encode_and_prefill}
    if args.dtype == "bf16":
        parts[f"clip to {NEW} tokens"] = Runner.answer
    rows: list[Row] = []
    bandwidths: list[float] = []

    def add(*new_rows: Row) -> None:
        rows.extend(new_rows)
        print(*new_rows, sep="\n", flush=True)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        runners = load_forms(encoder_bundle(Path(folder)), args.dtype)
        probe = ReadProbe()
        for name, part in parts.items():
            times, around = time_part(part, runners, args.rounds, probe)
            bandwidths += around
            add(*part_rows(name, times))
        if args.dtype == "bf16":
            for name in ("bf16", "int8"):
                runner = runners[name]
                add(task_row(name, runner))
                taken = outside_the_engine(runner.model, runner.clip)
                add({"case": f"a token outside of the engine, {name}", "ms": taken * 1e3})
    add(probe_row(bandwidths))
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
