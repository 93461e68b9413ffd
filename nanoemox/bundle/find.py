"""Finds the folder of a bundle: the demo's, a given one, or one of the Hugging Face cache."""

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from ..prompts import Templates
from .folder import CONFIG, TOKENIZER

DEMO = Path(__file__).parents[1] / "demo"
_FILES = ["config.json", "*.safetensors", *TOKENIZER, Templates.FILE, "README.md"]


def find(source: str | os.PathLike) -> Path:
    """The folder of a bundle.

    Args:
        source: "demo", a folder, or a Hugging Face id (owner/name), which is fetched into the cache.

    Raises:
        CheckpointError: there is no bundle.
    """
    name = os.fspath(source)
    folder = DEMO if name == "demo" else Path(name)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise CheckpointError(
                f"{folder}: no {CONFIG} in it, so it is no bundle; `nanoemox convert` makes one"
            )
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{folder}: a file; a bundle is a folder, `nanoemox convert` makes one of official checkpoints"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"{name}: no such folder; use demo, a bundle folder or a Hugging Face id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises many unrelated classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: neither a folder nor available from the Hugging Face hub ({reason})"
        ) from error
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: the repository holds no {CONFIG}, so it is no bundle")
    return folder
