"""Bundles of random weights, for benchmarks and tests."""

import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..build import build_empty
from ..bundle.find import DEMO
from ..bundle.folder import CARD, CONFIG, WEIGHTS, new_folder
from ..bundle.official_names import shapes
from ..bundle.tensors import write_safetensors
from ..config import NanoEmoXConfig
from ..devices import resolve
from ..generation.tokenizer import Tokenizer, check_vocabulary

_RANDOM_CARD = """# {name}, random weights

Made by `nanoemox.weights.random_bundle` with seed {seed}. It has the true sizes and knows nothing:
for benchmarks and tests, not for answers.
"""


def random_bundle(
    preset: str | NanoEmoXConfig,
    out: str | os.PathLike,
    seed: int = 0,
    *,
    dtype: str | torch.dtype = "bfloat16",
) -> Path:
    """Write a bundle of random weights, whose activations stay finite, with the demo's tokenizer.

    A tensor depends only on the seed, its name and its shape. One tensor is in memory at a time.

    Args:
        preset: "nano-emox-2.2b", "demo", or a configuration.
        out: the bundle: absent, empty, or a bundle, which is replaced.
        seed: of the random numbers.
        dtype: of the stored weights, bfloat16 or float32.

    Returns:
        The path of the bundle.

    Raises:
        UsageError: a preset or dtype that does not exist.
        CheckpointError: `out` holds something else, or cannot be written.
    """
    config = preset if isinstance(preset, NanoEmoXConfig) else NanoEmoXConfig.preset(preset)
    tokenizer, stored_dtype = Tokenizer(DEMO), resolve("cpu", dtype)[1]
    check_vocabulary(tokenizer, config, "the demo's tokenizer")
    sizes = shapes(build_empty(config, config.name), config)
    with new_folder(out) as folder:
        write_safetensors(
            folder / WEIGHTS, sizes, stored_dtype, lambda name: random_tensor(name, sizes[name], seed)
        )
        config.to_json(folder / CONFIG)
        tokenizer.save(folder)
        (folder / CARD).write_text(_RANDOM_CARD.format(name=config.name, seed=seed))
    return Path(out)


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """fp32: gains around 1, small biases and queries, matrices of unit gain, small adapters."""
    tensor_seed = zlib.crc32(f"{seed}|{name}".encode())  # the generator uses only 32 bits of a seed
    random = torch.Generator().manual_seed(tensor_seed)
    unit = torch.empty(shape).uniform_(-(3**0.5), 3**0.5, generator=random)  # mean 0, variance 1
    if name.endswith("weight.original0") or (len(shape) <= 1 and name.endswith("weight")):
        return unit.mul_(0.1).add_(1)
    if len(shape) <= 1:
        return unit.mul_(0.1)
    if name.endswith("query_tokens") or ".lora_B." in name:
        return unit.mul_(0.02)
    return unit.mul_(torch.Size(shape[1:]).numel() ** -0.5)
