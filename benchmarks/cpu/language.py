"""`python benchmarks/cpu/language.py`: decode and prefill of the true-size language model, beside Hugging
Face.

Random weights, one process, rounds of all forms in turn with a read-bandwidth probe among them; medians. A
share is the bytes that a token must read, over its time, over the probe of the same round; 20 ms lie between
probe and step, in which the probe's threads come to rest. `--busy N` times a step of each form beside N
foreign busy processes too."""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.results import write
from torch import Tensor

from nanoemox.config import LanguageConfig
from nanoemox.fast.decode.build import engine_language
from nanoemox.fast.decode.cpu import EngineLanguage
from nanoemox.generation.sampler import Sampler
from nanoemox.modules.language import LanguageModel, hugging_face_config
from nanoemox_kernels.probe import ReadProbe

PROMPT = 220
_REST = 0.02  # seconds after which the probe's OpenMP threads no longer spin: no probe precedes a real step


def reference(config: LanguageConfig, dtype: torch.dtype) -> LanguageModel:
    """Hugging Face's model with random weights of a healthy size."""
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(hugging_face_config(config)).to(dtype)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1)
        else:
            parameter.normal_(0, 0.5 * parameter.shape[-1] ** -0.5)
    rotary = model.model.rotary_emb
    rotary.inv_freq, rotary.original_inv_freq = (rotary.compute_default_rope_parameters(model.config)[0],) * 2
    language = LanguageModel(model)
    language.tie()
    return language


def twin(language: LanguageModel, quantize: str | None) -> EngineLanguage:
    """The engine on the same weights; quantising it spends a copy of them."""
    base = language.base
    with torch.device("meta"):
        other = type(base)(base.config)
    for name, parameter in base.named_parameters():
        parent, _, leaf = name.rpartition(".")
        value = parameter.detach() if quantize is None or parameter.ndim < 2 else parameter.detach().clone()
        other.get_submodule(parent)._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
    other.lm_head.weight = other.model.embed_tokens.weight
    other.model.rotary_emb = base.model.rotary_emb
    return engine_language(other, quantize)


def token_bytes(config: LanguageConfig, form: str) -> float:
    """What a token of one sequence must read: the layers' matrices (keys' and values' in bf16) and the head
    (int8).
    """
    c = config
    blocks = c.layers * c.hidden_size * (2 * c.heads * c.head_dim + 3 * c.mlp_size)
    keys_and_values = 2 * c.layers * c.hidden_size * c.kv_heads * c.head_dim
    head = c.vocab_size * c.hidden_size
    int8 = 1 + 2 / 64  # a bf16 scale for 64 columns
    size = {"fp32": 4.0, "bf16": 2.0, "int8": int8, "int4": 0.5 + 2 / 32}[form]
    return blocks * size + keys_and_values * max(size, 2.0) + head * max(size, int8)


class Runner:
    """One form: prefill, then a step at a time."""

    def __init__(self, language: Any, prompt: Tensor):
        self.language, self.prompt, self.sampler = language, prompt, Sampler()
        self.state: Any = None

    def prefill(self) -> None:
        if self.state is not None:
            self.language.end(self.state)
        self.logits, self.state = self.language.start([self.prompt])

    def step(self) -> None:
        self.logits = self.language.step(self.sampler(self.logits), self.state)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def busy() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="also time steps beside N busy processes"
    )
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    config = LanguageConfig(layers=args.layers)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        slow = reference(config, dtype)
        forms = [args.dtype, *(["int8", "int4"] if args.dtype == "bf16" else [])]
        languages = {"hugging face": slow} | {f: twin(slow, None if f == args.dtype else f) for f in forms}
        prompt = slow.embed(torch.arange(PROMPT) * 7 % config.vocab_size)
        runners = {name: Runner(language, prompt) for name, language in languages.items()}
        probe = ReadProbe()
        prefills: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(4):
            for name, runner in runners.items():
                prefills[name].append(timed(runner.prefill))
        steps: dict[str, list[float]] = {name: [] for name in runners}
        shares: dict[str, list[float]] = {form: [] for form in forms}
        bands = []
        for index in range(args.rounds + 2):
            for name, runner in runners.items():
                before = probe.once()
                time.sleep(_REST)
                taken = timed(runner.step)
                band = (before + probe.once()) / 2
                if index < 2:
                    continue
                steps[name].append(taken)
                bands.append(band)
                if name in shares:
                    shares[name].append(token_bytes(config, name) / taken / band)
        for name in runners:
            row: dict[str, Any] = {
                "case": name,
                "prefill_ms": statistics.median(prefills[name][1:]) * 1e3,
                "step_ms": statistics.median(steps[name]) * 1e3,
                "prefill_ratio": _ratio(prefills["hugging face"][1:], prefills[name][1:]),
                "step_ratio": _ratio(steps["hugging face"], steps[name]),
            }
            if name in shares:
                row["share_of_probe"] = statistics.median(shares[name])
            rows.append(row)
        rows.append(
            {"case": "probe", "median_GB_s": statistics.median(bands) / 1e9, "max_GB_s": max(bands) / 1e9}
        )
        if args.busy:
            others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(args.busy)]
            for other in others:
                other.start()
            time.sleep(1)
            for name, runner in runners.items():
                taken = statistics.median(timed(runner.step) for _ in range(8))
                rows.append({"case": f"{name} beside {args.busy} busy",
                             "slowdown": taken / statistics.median(steps[name])})  # fmt: skip
            for other in others:
                other.terminate()
    for row in rows:
        shown = [
            f"{key} {value:.3g}" if isinstance(value, float) else f"{value:<14}" for key, value in row.items()
        ]
        print("  ".join(shown))
    if args.results:
        write(args.results, rows)


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
