"""Bundles from elsewhere: official checkpoints, random numbers, a model in memory."""

import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .bundle import CARD, CONFIG, WEIGHTS, build_empty, new_folder, shapes, write_safetensors
from .config import NanoEmoXConfig
from .convert import convert
from .errors import CheckpointError
from .loading import DEMO, check_vocabulary, resolve
from .model import NanoEmoX
from .names import targets
from .quantized import layout, producer
from .tokenizer import Tokenizer

__all__ = ["convert", "random_bundle", "save_bundle"]

_RANDOM_CARD = """# {name}, random weights

Made by `nanoemox.weights.random_bundle` with seed {seed}. It has the true sizes and knows nothing: for benchmarks and
tests, not for answers.
"""


def random_bundle(
    preset: str | NanoEmoXConfig, out: str | os.PathLike, seed: int = 0, *, dtype: str | torch.dtype = "bfloat16"
) -> Path:
    """Write a bundle of random weights that keep activations in a healthy range, with the demo's tokenizer.

    A tensor depends on the seed, its name and its shape alone. One tensor is in memory at a time.
    """
    config = preset if isinstance(preset, NanoEmoXConfig) else NanoEmoXConfig.preset(preset)
    tokenizer, stored = Tokenizer(DEMO), resolve("cpu", dtype)[1]
    check_vocabulary(tokenizer, config, "the demo's tokenizer")
    wanted = shapes(build_empty(config, config.name), config)
    with new_folder(out) as folder:
        write_safetensors(folder / WEIGHTS, wanted, stored, lambda name: random_tensor(name, wanted[name], seed))
        config.to_json(folder / CONFIG)
        tokenizer.save(folder)
        (folder / CARD).write_text(_RANDOM_CARD.format(name=config.name, seed=seed))
    return Path(out)


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """fp32: gains around 1, small biases and queries, matrices of unit gain, small adapters."""
    random = torch.Generator().manual_seed(zlib.crc32(f"{seed}|{name}".encode()))  # only 32 bits of a seed count
    unit = torch.empty(shape).uniform_(-(3**0.5), 3**0.5, generator=random)  # mean 0, variance 1
    if name.endswith("weight.original0") or (len(shape) <= 1 and name.endswith("weight")):
        return unit.mul_(0.1).add_(1)
    if len(shape) <= 1:
        return unit.mul_(0.1)
    if name.endswith("query_tokens") or ".lora_B." in name:
        return unit.mul_(0.02)
    return unit.mul_(torch.Size(shape[1:]).numel() ** -0.5)


def save_bundle(
    model: NanoEmoX,
    folder: str | os.PathLike,
    quantize: str | None = None,
    scaled: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Write the model as a bundle, each tensor in its dtype, or its matrices as `quantize` ("int8", "int4") has them.

    scaled: what becomes of an official tensor before. Raises CheckpointError where the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise CheckpointError("a bundle needs a tokenizer: set model.tokenizer, or start from a loaded bundle")
    parameters = dict(model.named_parameters())
    parts = {target.name: target.parts for target in targets(model, model.config)}

    def produce(name: str) -> Tensor:
        tensors = [parameters[part].detach().cpu() for part in parts[name]]
        return scaled(name, tensors[0] if len(tensors) == 1 else torch.cat(tensors))

    wanted = shapes(model, model.config)
    config = replace(model.config, quantize=quantize or "none")
    parted = layout(wanted, config.quantize)
    part = producer(wanted, config.quantize, produce)
    card = model.source / CARD if model.source else None
    text = card.read_text() if card and card.is_file() else f"# {model.config.name}\n\nSaved by nanoemox.\n"
    with new_folder(folder) as new:
        dtypes = {name: p.dtype or parameters[parts[name][0]].dtype for name, p in parted.items()}
        write_safetensors(new / WEIGHTS, {name: p.shape for name, p in parted.items()}, dtypes, part)
        config.to_json(new / CONFIG)
        model.tokenizer.save(new)
        model.templates.save(new)
        (new / CARD).write_text(text)


def copy_bundle(source: Path, folder: str | os.PathLike) -> None:
    """The same bundle under another name."""
    with new_folder(folder) as new:
        for file in source.iterdir():
            if file.suffix in (".json", ".safetensors") or file.name == CARD:
                shutil.copyfile(file, new / file.name)
