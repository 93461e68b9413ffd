"""Compacts a folder of parity fixtures into tests/fixtures: `python tests/make_fixtures.py FOLDER`.

Inputs that a recipe rebuilds are left out. Float results keep a few values (probes), their peak and their
norm; integer results and the expectations of behaviour.json stay whole; of keys.json a digest per group of
names and shapes remains."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from parity import GROUPS, INPUTS
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "fixtures"
PROBES = 96


def probe_indices(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, PROBES).astype(np.int64))


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    return hashlib.sha256(
        json.dumps(sorted((name, list(shape)) for name, shape in shapes.items())).encode()
    ).hexdigest()


def main(source: Path) -> None:
    tensors = load_file(source / "expected.safetensors")
    packed: dict[str, np.ndarray] = {f"given|{name}": tensors[name].numpy() for name in INPUTS}
    with torch.inference_mode():
        results = [name for group in GROUPS.values() for name in group(tensors)]
    for name in [*results, *(name for name in tensors if name.endswith("raw_audio_every50"))]:
        value = tensors[name].numpy()
        if value.dtype == np.float32:
            flat = value.ravel()
            packed[f"probes|{name}"] = flat[probe_indices(flat.size)]
            packed[f"about|{name}"] = np.array(
                [*value.shape, np.abs(flat).max(), np.linalg.norm(flat.astype(np.float64))]
            )
        else:
            packed[f"whole|{name}"] = value
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "parity.npz", **packed)
    keys = json.loads((source / "keys.json").read_text())
    behaviour = json.loads((source / "behaviour.json").read_text())
    behaviour["keys"] = {
        group: digest(
            {name: tuple(shape) for name, (shape, kind) in listed.items() if not kind.startswith("int")}
        )
        for group, listed in keys.items()
    }
    (FOLDER / "behaviour.json").write_text(json.dumps(behaviour, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
