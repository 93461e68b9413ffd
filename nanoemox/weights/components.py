"""Finds the four base models on disk."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..bundle.tensors import listing
from ..errors import CheckpointError, UsageError
from ..generation.hugging_face import read_json

# Component names, and other names that users may give them.
COMPONENTS = {
    "clip": ("vision", "visual_encoder"),
    "hubert": ("audio", "acoustic_encoder"),
    "facexformer": ("face", "facial_encoder"),
    "qwen": ("language", "llm", "llama_model"),
}
# model_type in a config.json -> component
_MODEL_TYPES = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "hubert": "hubert",
    "qwen2": "qwen",
    "llama": "qwen",
}


def find_components(
    components: Mapping[str, str | os.PathLike] | str | os.PathLike, checkpoints: list[Path]
) -> dict[str, Path]:
    """Component name -> path.

    Args:
        components: paths by name, or a folder that is searched.
        checkpoints: official checkpoints, which are no component where they lie in that folder.

    Raises:
        UsageError: a name that does not exist.
        CheckpointError: a component that is missing or could be any of several files.
    """
    if isinstance(components, Mapping):
        candidates = _by_name(components)
    else:
        candidates = _search(Path(components), {path.resolve() for path in checkpoints})
    return {name: _single(name, candidates.get(name, [])) for name in COMPONENTS}


def _single(name: str, paths: list[Path]) -> Path:
    if not paths:
        raise CheckpointError(
            f"component {name} is missing: the checkpoint holds only what was trained on top of it"
        )
    if len(paths) > 1:
        raise CheckpointError(
            f"component {name} could be any of {listing(*map(str, paths))}: choose one by name"
        )
    if not paths[0].exists():
        raise CheckpointError(f"{paths[0]}: no such file or folder (component {name})")
    return paths[0]


def _by_name(components: Mapping[str, str | os.PathLike]) -> dict[str, list[Path]]:
    aliases = {alias: name for name, others in COMPONENTS.items() for alias in (name, *others)}
    unknown = [name for name in components if name not in aliases]
    if unknown:
        raise UsageError(f"component {unknown[0]!r} does not exist: use {', '.join(COMPONENTS)}")
    return {aliases[name]: [Path(path)] for name, path in components.items()}


def _search(folder: Path, checkpoints: set[Path]) -> dict[str, list[Path]]:
    """Candidates under a folder: by the model type in config.json; FaceXFormer is a torch file by itself."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    candidates: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*/config.json")):
        component = _MODEL_TYPES.get(str(read_json(file).get("model_type")))
        if component is not None:
            candidates.setdefault(component, []).append(file.parent)
    patterns = ("*.pt", "*.pth", "*/*.pt", "*/*.pth")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    candidates["facexformer"] = [file for file in files if file.resolve() not in checkpoints]
    return candidates
