"""Official files and base models, read without running anything in them: official name -> shape and how to read it."""

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..bundle.tensors import index, listing
from ..errors import CheckpointError, UsageError

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
_Found = dict[
    str, tuple[tuple[int, ...], Loader | None]
]  # as stored; no loader: not a dense tensor of a float kind
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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


def find_components(
    given: Mapping[str, str | os.PathLike] | str | os.PathLike, checkpoints: list[Path]
) -> dict[str, Path]:
    """Component name -> path. A folder is searched, leaving out the checkpoints; what is ambiguous is refused."""
    if isinstance(given, Mapping):
        alias = {other: name for name, others in COMPONENTS.items() for other in (name, *others)}
        if unknown := [key for key in given if key not in alias]:
            raise UsageError(f"component {unknown[0]!r} does not exist: use {', '.join(COMPONENTS)}")
        candidates = {alias[key]: [Path(path)] for key, path in given.items()}
    else:
        candidates = _search(Path(given), {path.resolve() for path in checkpoints})
    for name in COMPONENTS:
        paths = candidates.get(name, [])
        if not paths:
            raise CheckpointError(
                f"component {name} is missing: the checkpoint holds only what was trained on top of it"
            )
        if len(paths) > 1:
            raise CheckpointError(
                f"component {name} could be any of {listing(*map(str, paths))}: name the one"
            )
        if not paths[0].exists():
            raise CheckpointError(f"{paths[0]}: no such file or folder (component {name})")
    return {name: candidates[name][0] for name in COMPONENTS}


def _search(folder: Path, checkpoints: set[Path]) -> dict[str, list[Path]]:
    """Components under a folder, told by the model type in their config.json; FaceXFormer by being a lone pickle."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    kinds = {
        "clip": "clip",
        "clip_vision_model": "clip",
        "hubert": "hubert",
        "qwen2": "qwen",
        "llama": "qwen",
    }
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*/config.json")):
        if (kind := kinds.get(str(read_json(file).get("model_type")))) is not None:
            found.setdefault(kind, []).append(file.parent)
    lone = [f for pattern in ("*.pt", "*.pth", "*/*.pt", "*/*.pth") for f in sorted(folder.glob(pattern))]
    found["facexformer"] = [file for file in lone if file.resolve() not in checkpoints]
    return found


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: missing or not JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def _pickle(path: Path, key: str | None) -> _Found:
    """Tensors of a torch file, read without running anything in it."""
    held: Any = None
    for mmap in (True, False):  # a file of an old torch cannot be mapped
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            break
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: not opened, since it holds more than tensors and could run code"
            ) from error
        except Exception as error:  # a damaged pickle raises any kind
            if not mmap:
                raise CheckpointError(
                    f"{path}: not a torch file, or damaged ({type(error).__name__})"
                ) from error
    if key is not None:
        held = held.get(key) if isinstance(held, dict) else None
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise CheckpointError(
            f"{path}: no table of tensors{f' under {key!r}' if key else ''} in it; is this the right file?"
        )
    found: _Found = {}
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor")
        dense = value.layout is torch.strided and not value.is_meta and value.dtype in _FLOATS
        found[name] = tuple(value.shape), partial(_itself, value) if dense else None
    return found


def _folder(path: Path) -> _Found:
    """Tensors of a Hugging Face folder: safetensors if there are any, else `.bin`."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a folder; a Hugging Face model folder is needed here")
    if files := sorted(path.glob("*.safetensors")):
        return {name: (entry.shape, partial(_one, entry.file, name)) for name, entry in index(files).items()}
    tensors: _Found = {}
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


def _read(found: _Found, table: list[tuple[str, str | None]], path: Path) -> Tensors:
    out: Tensors = {}
    for name, (shape, read) in found.items():
        match, official = next(
            ((m, o) for pattern, o in table if (m := re.fullmatch(pattern, name))), (None, None)
        )
        if match is None:
            raise CheckpointError(f"{path}: unknown key {name}")
        if official is None:
            continue
        if read is None:
            raise CheckpointError(f"{path}: {name} is not a dense float32, float16 or bfloat16 tensor")
        if (full := match.expand(official)) in out:
            raise CheckpointError(f"{path}: {name} occurs a second time under another spelling")
        out[full] = shape, read
    return out
