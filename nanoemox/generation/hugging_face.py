"""Reads the Hugging Face folder of a language model alone: any qwen2 or llama model in safetensors."""

import json
from pathlib import Path
from typing import Any

import torch

from ..bundle.fill import read_into
from ..bundle.meta import without_parameters
from ..bundle.tensors import audit, index
from ..errors import CheckpointError
from ..modules.language import KINDS, LanguageModel


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: missing or not JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def read_config(folder: Path) -> Any:
    """Hugging Face's configuration of a folder. Raises CheckpointError."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no config.json in it; the Hugging Face folder of a language model has one"
        )
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(f"{path}: model_type {kind!r} is not supported, {' and '.join(KINDS)} are")
    config_class, _ = KINDS[kind]
    try:
        return config_class.from_dict(values)
    except Exception as error:  # transformers validates with exception classes of its own
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:300]}") from error


def read_weights(folder: Path, config: Any, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """The model of a folder with its weights, which stay mapped where they need no cast.

    Raises CheckpointError for missing, unknown or misshapen weights, by name.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder}: no *.safetensors in it; other formats are not read, save the model anew"
        )
    entries = index(files)
    _, model_class = KINDS[config.model_type]
    try:
        model = without_parameters(lambda: LanguageModel(model_class(config)))
    except Exception as error:  # sizes that make no model fail in many ways inside of transformers
        raise CheckpointError(f"{folder / 'config.json'}: these sizes make no model ({error})") from error
    model.tie()
    expected: dict[str, tuple[int, ...]] = {
        name: tuple(parameter.shape) for name, parameter in model.base.named_parameters()
    }
    present = {
        name: entry.shape for name, entry in entries.items() if not name.endswith("rotary_emb.inv_freq")
    }
    if config.tie_word_embeddings:
        present.pop("lm_head.weight", None)
    audit(present, expected, str(folder))
    parameters = {name: (name,) for name in expected}
    read_into(model.base, parameters, {name: entries[name] for name in expected}, device, dtype)
    model.tie()
    return model.to(device)
