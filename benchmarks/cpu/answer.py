"""`python benchmarks/cpu/answer.py`: a clip to an answer of 64 tokens, beside the reference, adapters merged.

The true size with random weights, one process, rounds of all forms in turn with a read-bandwidth probe among
them; medians. `--dtype fp32` times encoders and prefill alone. Also: six tasks of one clip by `answer_all`
and one by one, and the time of a token that is not the engine's."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.bundles import encoder_bundle
from common.results import write
from cpu.language import reference, timed, twin

import nanoemox
from nanoemox.config import LanguageConfig
from nanoemox.generation.generate import Request, generate
from nanoemox.media import Clip
from nanoemox.model import NanoEmoX
from nanoemox.tasks import TASKS
from nanoemox_kernels import _native
from nanoemox_kernels.probe import ReadProbe

PROMPT, NEW, TOLD = 220, 64, 32  # tokens of the prompt, of an answer, and of each of the six
WORDS = "i have to go now the lamp is in the hall "


def clip() -> Clip:
    random = np.random.default_rng(0)
    return Clip(
        frames=random.integers(0, 256, (8, 3, 224, 224), dtype=np.uint8),
        audio=random.normal(0, 0.1, (8, 32000)).astype(np.float32), subtitle=WORDS,
    )  # fmt: skip


class Runner:
    """One form of the model, from the clip on; keeps the seconds of each part."""

    def __init__(self, model: NanoEmoX, clip: Clip):
        self.model, self.clip = model, clip
        ids = model.prompt_ids(clip, "mer")
        assert len(ids) <= PROMPT, len(ids)
        filler = model.tokenizer.encode(WORDS)  # type: ignore[union-attr]
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
        (told,) = generate(self.model.language, [request])
        assert len(told.ids) == NEW


def six(model: NanoEmoX, clip: Clip) -> dict[str, Callable[[], Any]]:
    tasks = list(TASKS)
    return {
        "answer_all": lambda: model.answer_all(clip, max_new_tokens=TOLD),
        "one by one": lambda: [model.answer(clip, task, max_new_tokens=TOLD) for task in tasks],
    }


def outside_the_engine(model: NanoEmoX, clip: Clip, rounds: int = 5) -> float:
    """Seconds of a token, by `model.answer`, that are not spent in the C call."""
    inside, step, found = [0.0], _native.engine_step, []

    def clocked(*args: Any) -> None:
        inside[0] += timed(lambda: step(*args))

    _native.engine_step = clocked
    try:
        for _ in range(rounds):
            inside[0] = 0.0
            reply = model.answer(clip, "erg", max_new_tokens=NEW)
            found.append((reply.seconds["decode"] - inside[0]) / max(1, reply.tokens - 1))
    finally:
        _native.engine_step = step
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    forms = {"reference": None, args.dtype: None} | ({"int8": "int8"} if args.dtype == "bf16" else {})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bundle, slow, shown = encoder_bundle(Path(folder)), reference(LanguageConfig(), dtype), clip()
        runners = {}
        for name, quantize in forms.items():
            model = nanoemox.load(
                bundle, fast=name != "reference", device="cpu", dtype=dtype, quantize=quantize
            )
            model.language = slow if name == "reference" else twin(slow, quantize)
            runners[name] = Runner(model, shown)
        probe, bands = ReadProbe(), []
        parts = {"encode and prefill": Runner.encode_and_prefill}
        if args.dtype == "bf16":
            parts["clip to 64 tokens"] = Runner.answer
        for what, part in parts.items():
            taken: dict[str, list[float]] = {name: [] for name in runners}
            for index in range(args.rounds + 1):
                bands.append(probe.once())
                for name, runner in runners.items():
                    seconds = timed(lambda part=part, runner=runner: part(runner))
                    if index:
                        taken[name].append(seconds)
            for name, times in taken.items():
                ratio = statistics.median(a / b for a, b in zip(taken["reference"], times, strict=True))
                rows.append({"case": f"{what}, {name}", "ms": statistics.median(times) * 1e3, "ratio": ratio})
                print(rows[-1], flush=True)
        for name, runner in runners.items() if args.dtype == "bf16" else ():
            if name == "reference":
                continue
            calls = six(runner.model, shown)
            pairs = [[timed(call) for call in calls.values()] for _ in range(2)]
            rows.append({
                "case": f"six tasks, {name}", "answer_all_ms": statistics.median(p[0] for p in pairs) * 1e3,
                "ratio": statistics.median(p[1] / p[0] for p in pairs),
            })  # fmt: skip
            rows.append({"case": f"a token outside of the engine, {name}",
                         "ms": outside_the_engine(runner.model, shown) * 1e3})  # fmt: skip
            print(*rows[-2:], sep="\n", flush=True)
        rows.append(
            {"case": "probe", "median_GB_s": statistics.median(bands) / 1e9, "max_GB_s": max(bands) / 1e9}
        )
        print(rows[-1])
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s")
