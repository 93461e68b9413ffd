"""Data sets, own manifests and the synthetic corpus. `open_dataset(format, root)` opens any of them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from .clips import read_sample as read_sample
    from .record import Dataset, Sample

# Format -> the module in formats/ that defines `open_set(format, root, split, name, **options)`.
FORMATS = {
    "crema_d": "conversation",
    "m3ed": "conversation",
    "caer_ferv39k": "conversation",
    "mintrec": "conversation",
    "mintrec2": "conversation",
    "mercaptionplus": "captions",
    "ovmerd": "captions",
    "ovmerd_plus": "captions",
    "emer": "captions",
    "merr_fine": "merr",
    "avamerg": "avamerg",
    "mer2023": "mer_unibench",
    "mer2024": "mer_unibench",
    "meld": "mer_unibench",
    "iemocap": "mer_unibench",
    "cmumosi": "mer_unibench",
    "cmumosei": "mer_unibench",
    "sims": "mer_unibench",
    "simsv2": "mer_unibench",
    "manifest": "manifest",
}

__all__ = ["FORMATS", "Dataset", "Sample", "open_dataset", "read_sample"]


def open_dataset(
    format: str, root: str | os.PathLike, *, split: str = "train", name: str | None = None, **options: Any
) -> Dataset:
    """Open a data set by its format. Only annotations are read, no media. Formats: docs/data.md.

    Args:
        format: a key of FORMATS.
        root: the folder of annotations and media; for `manifest`, the JSONL file or its folder.
        split: "train" or "test". MER-UniBench archives may also have "val", "test2" and "test3".
        name: the name of this data set in a config, by default the format.
        options: options of the format's `open_set`. All but `manifest` accept `video` and `audio`, folders
            relative to the root that replace the usual ones.

    Returns:
        The data set, whose samples `read_sample` turns into clips.

    Raises:
        UsageError: the format, split or option does not exist.
        DataError: an annotation file is missing or malformed; the message names the line or key.
    """
    if format not in FORMATS:
        raise UsageError(f"data format {format!r} does not exist: use {', '.join(FORMATS)}")
    module = importlib.import_module(f".formats.{FORMATS[format]}", __name__)
    try:
        return module.open_set(format, Path(root), split, name, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).split()[-1]
        raise UsageError(f"data format {format!r} has no option {option}") from error


def __getattr__(name: str) -> Any:
    """Import the classes and `read_sample` on first use, so that importing this package is cheap."""
    if name in ("Sample", "Dataset"):
        from . import record

        return getattr(record, name)
    if name == "read_sample":
        from .clips import read_sample

        return read_sample
    raise AttributeError(name)
