"""`python benchmarks/cpu/peak.py`: peak memory of a true-size model that loads and answers, over its weights.

Each form in a process of its own: the largest resident memory (VmHWM) less what was resident after the
imports, from `nanoemox.load` to the end of an answer of 64 tokens about a clip. Weights count as they are
held. "from int8" loads a bundle that was saved quantised; random weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
]  # the tree itself, installed or not

from common.results import write
from cpu.memory import resident
from torch import nn

FORMS = {
    "bf16": (None, False),
    "int8": ("int8", False),
    "int8 from int8": (None, True),
    "int4": ("int4", False),
}


def held(model: nn.Module) -> int:
    """Bytes of all weights, each counted once; packed ones are attributes of their layers."""
    packed = [p for layer in model.modules() if (p := getattr(layer, "packed", None)) is not None]
    parts = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    language = getattr(model.language, "nbytes", 0)
    return sum(parts.values()) + sum(p.numel() * p.itemsize for p in packed) + language


def one(folder: str, quantize: str | None, save: str | None) -> None:
    import torch
    from cpu.answer import clip

    import nanoemox
    import nanoemox.fast
    from nanoemox.generation.generate import Request, generate

    before = resident("VmRSS")
    model = nanoemox.load(folder, fast=True, device="cpu", dtype="bfloat16", quantize=quantize)
    loaded = resident("VmHWM") - before
    shown = clip()
    encoded = model.encode(shown)
    with torch.inference_mode():
        prompt = model.splice(torch.tensor([model.prompt_ids(shown, "erg")]), encoded)[0]
    generate(model.language, [Request(prompt, 64, lambda ids: False)])
    print(json.dumps({"weights": held(model), "loading": loaded, "peak": resident("VmHWM") - before}))
    if save:
        model.save(save)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--results", help="write the rows to this JSON file")
    args = parser.parse_args()
    if args.one:
        return one(args.one[0], args.one[1] or None, args.one[2] or None)
    from nanoemox.weights import random_bundle

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        plain, small = Path(temporary) / "plain", Path(temporary) / "int8"
        random_bundle("nano-emox-2.2b", plain)
        for name, (quantize, saved) in FORMS.items():
            folder, save = (small if saved else plain), (str(small) if name == "int8" else "")
            run = [sys.executable, __file__, "--one", str(folder), quantize or "", save]
            done = subprocess.run(run, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({
                "case": name, **{f"{key}_MiB": round(value / 2**20) for key, value in found.items()},
                "peak_over_weights": round(found["peak"] / found["weights"], 3),
            })  # fmt: skip
            print(rows[-1], flush=True)
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    main()
