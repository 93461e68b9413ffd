"""Writes a bundle completely or not at all."""

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


class SavesFiles(Protocol):
    """A tokenizer: it writes its files into a folder."""

    def save(self, folder: Path) -> None: ...


def save_bundle(
    folder: str | os.PathLike,
    config: NanoEmoXConfig,
    tensors: OfficialTensors,
    tokenizer: SavesFiles,
    templates: Templates,
    *,
    card: str | None = None,
    quantize: str | None = None,
    scale: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Write a bundle. After an error the folder is as it was before.

    Args:
        folder: absent, empty, or a bundle, which is replaced.
        config: the model's sizes.
        tensors: each is written in its dtype, and its matrices in the form that `quantize` names.
        tokenizer, templates: written into the folder.
        card: text of the model card.
        quantize: None, "int8" or "int4".
        scale: applied to every official tensor (name, tensor) before it is quantised.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written.
    """
    config = replace(config, quantize=quantize or "none")
    if card is None:
        card = f"# {config.name}\n\nSaved by nanoemox.\n"
    parts = layout(tensors.shapes, config.quantize)
    shapes = {name: part.shape for name, part in parts.items()}
    dtypes = {name: part.dtype or tensors.dtypes[name] for name, part in parts.items()}
    produce = producer(tensors.shapes, config.quantize, lambda name: scale(name, tensors[name]))
    with new_folder(folder) as new:
        write_safetensors(new / WEIGHTS, shapes, dtypes, produce)
        config.to_json(new / CONFIG)
        tokenizer.save(new)
        templates.save(new)
        (new / CARD).write_text(card)


def copy_bundle(source: Path, folder: str | os.PathLike) -> None:
    """Write a copy of the bundle in `source`. Raises as `save_bundle` does."""
    with new_folder(folder) as new:
        for file in source.iterdir():
            if file.suffix in (".json", ".safetensors") or file.name == CARD:
                shutil.copyfile(file, new / file.name)
