"""Writes a bundle, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..config import NanoEmoXConfig
from ..prompts import Templates
from .folder import CARD, CONFIG, WEIGHTS, new_folder
from .official_names import OfficialTensors
from .quantized import layout, producer
from .tensors import write_safetensors


class Saved(Protocol):
    """What can write itself into a folder: a tokenizer."""

    def save(self, folder: Path) -> None: ...


def save_bundle(
    folder: str | os.PathLike,
    config: NanoEmoXConfig,
    tensors: OfficialTensors,
    tokenizer: Saved,
    templates: Templates,
    *,
    card: str | None = None,
    quantize: str | None = None,
    scale: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Write a bundle. One that is there is replaced whole; after an error nothing is left behind.

    Args:
        folder: absent, empty, or an older bundle.
        tensors: each is written in its dtype, or its matrices in the form that `quantize` names.
        card: text of the model card.
        quantize: None, "int8" or "int4".
        scale: applied to every official tensor (name, tensor) before it is quantised.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written.
    """
    config = replace(config, quantize=quantize or "none")
    parts = layout(tensors.shapes, config.quantize)
    dtypes = {name: part.dtype or tensors.dtypes[name] for name, part in parts.items()}
    produce = producer(tensors.shapes, config.quantize, lambda name: scale(name, tensors[name]))
    with new_folder(folder) as new:
        write_safetensors(new / WEIGHTS, {name: part.shape for name, part in parts.items()}, dtypes, produce)
        config.to_json(new / CONFIG)
        tokenizer.save(new)
        templates.save(new)
        (new / CARD).write_text(card if card is not None else f"# {config.name}\n\nSaved by nanoemox.\n")


def copy_bundle(source: Path, folder: str | os.PathLike) -> None:
    """The same bundle under another name."""
    with new_folder(folder) as new:
        for file in source.iterdir():
            if file.suffix in (".json", ".safetensors") or file.name == CARD:
                shutil.copyfile(file, new / file.name)
