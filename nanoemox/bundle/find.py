"""From a name to a bundle's folder: the demo, a folder, or a Hugging Face id."""

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from ..prompts import Templates
from .folder import CONFIG, TOKENIZER

DEMO = Path(__file__).parents[1] / "demo"
_FILES = ["config.json", "*.safetensors", *TOKENIZER, Templates.FILE, "README.md"]


def find(source: str | os.PathLike) -> Path:
    """The bundle's folder; fetched into the Hugging Face cache if `source` is an id."""
    name = os.fspath(source)
    folder = DEMO if name == "demo" else Path(name)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder}: no {CONFIG} in it, so no bundle; `nanoemox convert` makes one")
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
    except Exception as error:  # the hub's clients raise a dozen unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: neither a folder nor to be had from the Hugging Face hub ({reason})"
        ) from error
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: the repository holds no {CONFIG}, so it is no bundle")
    return folder
