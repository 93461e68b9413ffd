"""Official files and base models, read without running anything in them: official name -> shape and how to read it."""

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .bundle import index
from .errors import CheckpointError, UsageError

# Component names and what users may also call them.
COMPONENTS = {
    "clip": ("vision", "visual_encoder"),
    "hubert": ("audio", "acoustic_encoder"),
    "facexformer": ("face", "facial_encoder"),
    "qwen": ("language", "llm", "llama_model"),
}
# (pattern, official name or None to drop); first match wins, a name without a match is an error.
_CLIP = [
    (r"(?:text_model\..*|(?:visual|text)_projection\.weight|logit_scale|.*position_ids)", None),
    (
        r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)",
        r"visual_encoder.model.vision_model.\1",
    ),
]
_HUBERT = [
    (r"(?:lm_head|final_proj|projector|classifier|layer_weights|label_embs_concat)\b.*", None),
    (r"(?:hubert\.)?(.*)\.weight_g", r"acoustic_encoder.model.\1.parametrizations.weight.original0"),
    (r"(?:hubert\.)?(.*)\.weight_v", r"acoustic_encoder.model.\1.parametrizations.weight.original1"),
    (
        r"(?:hubert\.)?((?:masked_spec_embed|feature_extractor|feature_projection|encoder)\b.*)",
        r"acoustic_encoder.model.\1",
    ),
]
_FACE = [
    (r"(?:module\.)?(?:face_decoder\..*|pe_layer\..*|.*relative_position_index)", None),
    (r"(?:module\.)?((?:backbone|linear_c|linear_fuse)\..*)", r"facial_encoder.facexformer.\1"),
]
_QWEN = [(r".*rotary_emb\.inv_freq", None), (r"((?:model|lm_head)\..*)", r"llama_model.\1")]
_CHECKPOINT = [
    # Left-over buffers, the tied head, and tensors that the deployed path never uses.
    (r".*\.(?:position_ids|relative_position_index)|facial_encoder\.lynorm\..*|image_llama_proj\..*", None),
    (r"llama_model\.(?:base_model\.model\.)?lm_head\.weight", None),
    (r"(.*)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(.*)\.weight_v", r"\1.parametrizations.weight.original1"),
    (r"(.*)", r"\1"),
]
Loader = Callable[[], Tensor]
Tensors = dict[str, tuple[tuple[int, ...], Loader]]  # official name -> shape, how to read it


def read_components(paths: dict[str, Path]) -> Tensors:
    """Every tensor of the four base models."""
    return (
        _read(_folder(paths["clip"]), _CLIP, paths["clip"])
        | _read(_folder(paths["hubert"]), _HUBERT, paths["hubert"])
        | _read(_pickle(paths["facexformer"], "state_dict_backbone"), _FACE, paths["facexformer"])
        | _read(_folder(paths["qwen"]), _QWEN, paths["qwen"])
    )


def read_checkpoint(path: Path) -> Tensors:
    """Every tensor of an official phase checkpoint that the model uses."""
    return _read(_pickle(path, "model"), _CHECKPOINT, path)


def find_components(given: Mapping[str, str | os.PathLike] | str | os.PathLike) -> dict[str, Path]:
    if isinstance(given, Mapping):
        alias = {other: name for name, others in COMPONENTS.items() for other in (name, *others)}
        if unknown := [key for key in given if key not in alias]:
            raise UsageError(f"component {unknown[0]!r} does not exist: use {', '.join(COMPONENTS)}")
        paths = {alias[key]: Path(path) for key, path in given.items()}
    else:
        paths = _search(Path(given))
    for name in COMPONENTS:
        if name not in paths:
            raise CheckpointError(
                f"component {name} is missing: the checkpoint holds only what was trained on top of it"
            )
        if not paths[name].exists():
            raise CheckpointError(f"{paths[name]}: no such file or folder (component {name})")
    return paths


def _search(folder: Path) -> dict[str, Path]:
    """Components under a folder, told by the model type in their config.json; FaceXFormer by being a lone pickle."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    kinds = {"clip": "clip", "clip_vision_model": "clip", "hubert": "hubert", "qwen2": "qwen", "llama": "qwen"}
    paths = {}
    for file in sorted(folder.glob("*/config.json")):
        if (kind := kinds.get(read_json(file).get("model_type", ""))) is not None:
            paths[kind] = file.parent
    lone = [f for pattern in ("*.pt", "*.pth", "*/*.pt", "*/*.pth") for f in folder.glob(pattern)]
    if lone:
        paths["facexformer"] = lone[0]
    return paths


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or not JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def _pickle(path: Path, key: str | None) -> Tensors:
    """Tensors of a torch file, read without running anything in it."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, which could run code; it is not opened"
        ) from error
    except RuntimeError:  # written by an old torch, which cannot be mapped
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"{path}: not a torch file, cut off, or one that could run code; not opened"
            ) from error
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if key is not None:
        if not isinstance(held, dict) or not isinstance(held.get(key), dict):
            raise CheckpointError(f"{path}: no entry {key!r}; is this the right file?")
        held = held[key]
    if bad := [name for name, value in held.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: {bad[0]} is not a tensor")
    return {name: (tuple(value.shape), partial(_itself, value)) for name, value in held.items()}


def _folder(path: Path) -> Tensors:
    """Tensors of a Hugging Face folder: safetensors if there are any, else `.bin`."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a folder; a Hugging Face model folder is needed here")
    if files := sorted(path.glob("*.safetensors")):
        return {name: (entry.shape, partial(_one, entry.file, name)) for name, entry in index(files).items()}
    tensors: Tensors = {}
    for file in sorted(path.glob("pytorch_model*.bin")):
        tensors |= _pickle(file, None)
    if not tensors:
        raise CheckpointError(f"{path}: no *.safetensors and no pytorch_model*.bin in it")
    return tensors


def _itself(value: Tensor) -> Tensor:
    return value


def _one(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as f:
        return f.get_tensor(name)


def _read(tensors: Tensors, table: list[tuple[str, str | None]], path: Path) -> Tensors:
    out: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, official in table:
            if match := re.fullmatch(pattern, name):
                if official is not None:
                    out[match.expand(official)] = tensor
                break
        else:
            raise CheckpointError(f"{path}: unknown key {name}")
    return out
