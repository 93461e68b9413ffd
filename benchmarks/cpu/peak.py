"""`python benchmarks/cpu/peak.py`: peak memory of a model at published size that is loaded and answers.

Each form in a separate process, with random weights. "peak" is the largest resident memory (VmHWM) from
`nanoemox.load` to the end of an answer of 64 tokens about a clip, less the resident memory after the imports.
Weights count in the form that is in memory. "from int8" loads a bundle that was saved quantised.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]  # the repository and its benchmarks folder

from common.results import argument_parser, write
from cpu.memory import resident
from torch import nn

# Name -> (quantisation at loading, whether the bundle was saved in int8).
FORMS = {
    "bf16": (None, False),
    "int8": ("int8", False),
    "int8 from int8": (None, True),
    "int4": ("int4", False),
}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, each counted once; packed weights are attributes of their layers."""
    layers = [getattr(layer, "packed", None) for layer in model.modules()]
    packed = [weight for weight in layers if weight is not None]
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    language = getattr(model.language, "nbytes", 0)
    return sum(tensors.values()) + sum(weight.numel() * weight.itemsize for weight in packed) + language


def measure(folder: str, quantize: str | None, save: str | None) -> None:
    """Measure one form in this process; prints JSON with the bytes of "weights", "loading" and "peak".

    Args:
        folder: the bundle.
        quantize: "int8", "int4" or None.
        save: folder to which the loaded model is saved afterwards, or None.
    """
    import torch
    from cpu.answer import random_clip

    import nanoemox
    import nanoemox.fast
    from nanoemox.generation.generate import Request, generate

    before = resident("VmRSS")
    model = nanoemox.load(folder, fast=True, device="cpu", dtype="bfloat16", quantize=quantize)
    loaded = resident("VmHWM") - before
    clip = random_clip()
    encoded = model.encode(clip)
    with torch.inference_mode():
        prompt = model.splice(torch.tensor([model.prompt_ids(clip, "erg")]), encoded)[0]
    generate(model.language, [Request(prompt, 64, lambda ids: False)])
    peak = resident("VmHWM") - before
    print(json.dumps({"weights": weight_bytes(model), "loading": loaded, "peak": peak}))
    if save:
        model.save(save)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        folder, quantize, save = args.measure
        return measure(folder, quantize or None, save or None)
    from nanoemox.weights import random_bundle

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        plain, small = Path(temporary) / "plain", Path(temporary) / "int8"
        random_bundle("nano-emox-2.2b", plain)
        for name, (quantize, saved) in FORMS.items():
            folder, save = (small if saved else plain), (str(small) if name == "int8" else "")
            arguments = [sys.executable, __file__, "--measure", str(folder), quantize or "", save]
            result = subprocess.run(arguments, capture_output=True, text=True, check=True)
            nbytes = json.loads(result.stdout.splitlines()[-1])
            mebibytes = {f"{key}_MiB": round(value / 2**20) for key, value in nbytes.items()}
            ratio = round(nbytes["peak"] / nbytes["weights"], 3)
            rows.append({"case": name, **mebibytes, "peak_over_weights": ratio})
            print(rows[-1], flush=True)
    if args.results:
        write(args.results, rows)


if __name__ == "__main__":
    main()
