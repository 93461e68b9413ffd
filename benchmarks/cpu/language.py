"""`python benchmarks/cpu/language.py`: decode and prefill of the language model at published size.

Beside Hugging Face's model, with random weights, in one process. All forms and a probe of the read bandwidth
take turns; figures are medians over the rounds. "share of probe" is the bytes that a token must read, divided
by its time and by the bandwidth of the same round. The script waits 20 ms between probe and step, until the
probe's threads are idle. `--busy N` also times a step of each form beside N busy processes.
"""

import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.clocks import seconds
from common.results import Row, argument_parser, write
from torch import Tensor

from nanoemox.config import LanguageConfig
from nanoemox.fast.decode.build import engine_language
from nanoemox.fast.decode.cpu import EngineLanguage
from nanoemox.generation.sampler import Sampler
from nanoemox.modules.language import LanguageModel, hugging_face_config
from nanoemox_kernels.probe import ReadProbe

Times = dict[str, list[float]]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PROMPT = 220  # tokens
_PAUSE = 0.02  # seconds after which the OpenMP threads of the probe no longer spin


def reference(config: LanguageConfig, dtype: torch.dtype) -> LanguageModel:
    """Hugging Face's model with random weights that keep activations at a common scale."""
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
    """The decode engine with the same weights; a quantised engine is made from a copy of them."""
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
    """Bytes of weights that a token of one sequence reads.

    Quantised forms have keys and values in bf16; int4 has an int8 head.
    """
    per_row = 2 * config.heads * config.head_dim + 3 * config.mlp_size
    blocks = config.layers * config.hidden_size * per_row
    keys_and_values = 2 * config.layers * config.hidden_size * config.kv_heads * config.head_dim
    head = config.vocab_size * config.hidden_size
    int8 = 1 + 2 / 64  # a bf16 scale for 64 columns
    size = {"fp32": 4.0, "bf16": 2.0, "int8": int8, "int4": 0.5 + 2 / 32}[form]
    return blocks * size + keys_and_values * max(size, 2.0) + head * max(size, int8)


class Runner:
    """One form of the model: a prefill, then single steps."""

    def __init__(self, language: Any, prompt: Tensor):
        self.language, self.prompt, self.sampler = language, prompt, Sampler()
        self.state: Any = None

    def prefill(self) -> None:
        if self.state is not None:
            self.language.end(self.state)
        self.logits, self.state = self.language.start([self.prompt])

    def step(self) -> None:
        self.logits = self.language.step(self.sampler(self.logits), self.state)


def busy() -> None:
    """Never return."""
    while True:
        pass


def time_prefills(runners: dict[str, Runner], rounds: int = 3) -> Times:
    """Seconds of each form's prefills, without the first."""
    times: Times = {name: [] for name in runners}
    for _ in range(rounds + 1):
        for name, runner in runners.items():
            times[name].append(seconds(runner.prefill))
    return {name: values[1:] for name, values in times.items()}


def time_steps(runners: dict[str, Runner], rounds: int, warm: int = 2) -> tuple[Times, Times]:
    """Seconds of each form's steps, and the read bandwidth around each step, without the first rounds."""
    probe = ReadProbe()
    times: Times = {name: [] for name in runners}
    bandwidths: Times = {name: [] for name in runners}
    for index in range(rounds + warm):
        for name, runner in runners.items():
            before = probe.once()
            time.sleep(_PAUSE)
            taken = seconds(runner.step)
            after = probe.once()
            if index >= warm:
                times[name].append(taken)
                bandwidths[name].append((before + after) / 2)
    return times, bandwidths


def slowdowns(runners: dict[str, Runner], times: Times, count: int) -> list[Row]:
    """Each form's step beside `count` busy processes, over its median in `times`."""
    processes = [multiprocessing.Process(target=busy, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(1)
    rows: list[Row] = []
    for name, runner in runners.items():
        taken = statistics.median(seconds(runner.step) for _ in range(8))
        alone = statistics.median(times[name])
        rows.append({"case": f"{name} beside {count} busy", "slowdown": taken / alone})
    for process in processes:
        process.terminate()
    return rows


def rows_of(config: LanguageConfig, prefills: Times, steps: Times, bandwidths: Times) -> list[Row]:
    """A row per form, and one of the probe. The first form is the baseline and has no share."""
    baseline, *forms = steps
    rows: list[Row] = []
    for name in steps:
        row: Row = {
            "case": name,
            "prefill_ms": statistics.median(prefills[name]) * 1e3,
            "step_ms": statistics.median(steps[name]) * 1e3,
            "prefill_ratio": _ratio(prefills[baseline], prefills[name]),
            "step_ratio": _ratio(steps[baseline], steps[name]),
        }
        if name in forms:
            read = token_bytes(config, name)
            pairs = zip(steps[name], bandwidths[name], strict=True)
            row["share_of_probe"] = statistics.median(read / taken / bandwidth for taken, bandwidth in pairs)
        rows.append(row)
    return [*rows, probe_row([value for values in bandwidths.values() for value in values])]


def probe_row(bandwidths: list[float]) -> Row:
    """The row of the read-bandwidth probe; `bandwidths` in bytes per second."""
    return {
        "case": "probe",
        "median_GB_s": statistics.median(bandwidths) / 1e9,
        "max_GB_s": max(bandwidths) / 1e9,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="also time steps beside N busy processes"
    )
    args = parser.parse_args()
    config = LanguageConfig(layers=args.layers)
    with torch.inference_mode():
        hugging_face = reference(config, DTYPES[args.dtype])
        languages: dict[str, Any] = {"hugging face": hugging_face, args.dtype: twin(hugging_face, None)}
        if args.dtype == "bf16":
            languages |= {form: twin(hugging_face, form) for form in ("int8", "int4")}
        prompt = hugging_face.embed(torch.arange(PROMPT) * 7 % config.vocab_size)
        runners = {name: Runner(language, prompt) for name, language in languages.items()}
        prefills = time_prefills(runners)
        steps, bandwidths = time_steps(runners, args.rounds)
        rows = rows_of(config, prefills, steps, bandwidths)
        if args.busy:
            rows += slowdowns(runners, steps, args.busy)
    for row in rows:
        cells = [f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float)]
        print("  ".join([f"{row['case']:<14}", *cells]))
    if args.results:
        write(args.results, rows)


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
