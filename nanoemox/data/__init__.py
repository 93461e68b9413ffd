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

# Format -> the module with its `open_set(format, root, split, name, **options)`.
FORMATS = {
    **dict.fromkeys(("crema_d", "m3ed", "caer_ferv39k", "mintrec", "mintrec2"), "conversation"),
    **dict.fromkeys(("mercaptionplus", "ovmerd", "ovmerd_plus", "emer"), "captions"),
    "merr_fine": "merr",
    "avamerg": "avamerg",
    **dict.fromkeys(
        ("mer2023", "mer2024", "meld", "iemocap", "cmumosi", "cmumosei", "sims", "simsv2"), "mer_unibench"
    ),
    "manifest": "manifest",
}  # fmt: skip

__all__ = ["FORMATS", "Dataset", "Sample", "open_dataset", "read_sample"]


def open_dataset(
    format: str, root: str | os.PathLike, *, split: str = "train", name: str | None = None, **options: Any
) -> Dataset:
    """Open a data set by its format (tasks.md section 5).

    Args:
        format: one of FORMATS.
        root: the folder that holds annotations and media; for `manifest` the JSONL file.
        split: "train" or "test"; MER-UniBench archives also have "val", "test2" and "test3" where they hold them.
        name: what this set is called in a config, default the format.
        options: `video` and `audio`, folders relative to the root that replace the set's usual ones, and what else
            the format's module documents.

    Raises:
        UsageError: a format, split or option that does not exist.
        ValueError: a file that is missing or not as it should be, named with the line or key.
    """
    if format not in FORMATS:
        raise UsageError(f"data format {format!r} does not exist: use {', '.join(FORMATS)}")
    module = importlib.import_module(f".formats.{FORMATS[format]}", __name__)
    try:
        return module.open_set(format, Path(root), split, name, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UsageError(f"data format {format!r} has no option {str(error).split()[-1]}") from error


def __getattr__(name: str) -> Any:
    if name in ("Sample", "Dataset"):
        from . import record

        return getattr(record, name)
    if name == "read_sample":
        from .clips import read_sample

        return read_sample
    raise AttributeError(name)
