"""Official phase checkpoints and their base models -> one bundle, every key accounted for (architecture 15, 16)."""

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .bundle import CARD, CONFIG, WEIGHTS, audit, index, new_folder, parameters_on_meta, shapes, write_safetensors
from .config import AudioConfig, LanguageConfig, NanoEmoXConfig, VisionConfig
from .errors import CheckpointError, UsageError
from .infer import infer_config
from .language import merge_lora
from .model import NanoEmoX
from .tokenizer import PLACEHOLDERS, Tokenizer

# Component names and what users may also call them.
COMPONENTS = {
    "clip": ("vision", "visual_encoder"),
    "hubert": ("audio", "acoustic_encoder"),
    "facexformer": ("face", "facial_encoder"),
    "qwen": ("language", "llm", "llama_model"),
}
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

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
_UNUSED = re.compile(r"multi_(?:audio|video)_embs\..*")  # used by some fusion variants only
_LORA = re.compile(r"(llama_model\.)base_model\.model\.(.*)\.lora_([AB])\.default\.weight")

Loader = Callable[[], Tensor]
Tensors = dict[str, tuple[tuple[int, ...], Loader]]  # official name -> shape, how to read it


def convert(
    *,
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike],
    components: Mapping[str, str | os.PathLike] | str | os.PathLike,
    out: str | os.PathLike,
    dtype: str | torch.dtype = "bfloat16",
    lora: str = "keep",
    config: NanoEmoXConfig | None = None,
) -> Path:
    """Write a bundle of official phase checkpoints and the base models that they were trained on.

    Args:
        checkpoint: one `.pth` file, or several of which later ones win (phases 1-1, 1-2: in this order).
        components: {"clip": folder, "hubert": folder, "facexformer": file, "qwen": folder}, or a folder that holds
            the four. Folders are Hugging Face's, with safetensors or `.bin`.
        out: the bundle; absent, empty, or a bundle to be replaced.
        dtype: bfloat16 or float32.
        lora: "keep" the adapters beside the language model or "merge" them into it, in fp32.
        config: sizes that neither the files' shapes nor their config.json tell (heads, taps); default as published.

    Raises:
        CheckpointError: a file that cannot be read safely; a name that is unknown, missing or misshapen.
        UsageError: an option that does not exist.
    """
    stored = dtype if isinstance(dtype, torch.dtype) else _DTYPES.get(dtype)
    if stored is None or stored not in _DTYPES.values():
        raise UsageError(f"dtype {str(dtype)!r} does not exist here: use bfloat16 or float32")
    if lora not in ("keep", "merge"):
        raise UsageError(f"lora {lora!r} does not exist: use keep or merge")
    paths = _components(components)
    files = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else list(checkpoint)
    found: Tensors = {}
    for name, read in (
        ("clip", lambda path: _read(_folder(path), _CLIP, path)),
        ("hubert", lambda path: _read(_folder(path), _HUBERT, path)),
        ("facexformer", lambda path: _read(_pickle(path, "state_dict_backbone"), _FACE, path)),
        ("qwen", lambda path: _read(_folder(path), _QWEN, path)),
    ):
        found |= read(paths[name])
    trained: Tensors = {}
    for file in files:
        trained |= _read(_pickle(Path(file), "model"), _CHECKPOINT, Path(file))
    config = _sizes(config or NanoEmoXConfig(), paths)
    config = infer_config(config, {name: shape for name, (shape, _) in (found | trained).items()})
    if config.fusion.type not in ("attention", "qformer"):
        trained = {name: tensor for name, tensor in trained.items() if not _UNUSED.fullmatch(name)}
    found = _language(found | trained, config, lora)
    if lora == "merge":
        config = replace(config, lora=None)
    with parameters_on_meta():
        wanted = shapes(NanoEmoX(config), config)
    _complete(found, wanted)
    audit(
        {name: shape for name, (shape, _) in found.items()}, wanted, " + ".join(map(str, files)),
        "official names; each must come from the checkpoint or its base model",
    )  # fmt: skip
    with new_folder(out) as folder:
        _write_tokenizer(paths["qwen"], folder)
        Tokenizer(folder)
        write_safetensors(folder / WEIGHTS, wanted, stored, lambda name: found[name][1]())
        config.to_json(folder / CONFIG)
        names = ", ".join(Path(file).name for file in files)
        (folder / CARD).write_text(f"# {config.name}\n\nConverted by nanoemox from {names}; adapters: {lora}.\n")
    return Path(out)


# -- reading ----------------------------------------------------------------------------------------------------------


def _components(given: Mapping[str, str | os.PathLike] | str | os.PathLike) -> dict[str, Path]:
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
        if (kind := kinds.get(_json(file).get("model_type", ""))) is not None:
            paths[kind] = file.parent
    lone = [f for pattern in ("*.pt", "*.pth", "*/*.pt", "*/*.pth") for f in folder.glob(pattern)]
    if lone:
        paths["facexformer"] = lone[0]
    return paths


def _json(path: Path) -> dict[str, Any]:
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


def _merged(base: Loader, a: Loader, b: Loader, scale: float) -> Tensor:
    return merge_lora(base().float(), a(), b(), scale)


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


# -- sizes ------------------------------------------------------------------------------------------------------------


def _sizes(config: NanoEmoXConfig, paths: dict[str, Path]) -> NanoEmoXConfig:
    """The encoders and the language model as their own config.json describes them."""
    clip = _json(paths["clip"] / "config.json")
    clip = {**clip, **clip.get("vision_config", {})}
    hubert = _json(paths["hubert"] / "config.json")
    processor = paths["hubert"] / "preprocessor_config.json"
    qwen = _json(paths["qwen"] / "config.json")
    rope = qwen.get("rope_parameters") or qwen.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type") or "default") != "default" or qwen.get("use_sliding_window"):
        raise CheckpointError(
            f"{paths['qwen']}/config.json: scaled rotary positions and sliding windows are not supported"
        )

    def pick(known: Any, values: dict[str, Any], **names: str) -> dict[str, Any]:
        return {ours: values.get(theirs, getattr(known, ours)) for ours, theirs in names.items()}

    def lists(values: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    vision: VisionConfig = replace(
        config.vision,
        **pick(
            config.vision, clip, hidden_size="hidden_size", layers="num_hidden_layers", heads="num_attention_heads",
            mlp_size="intermediate_size", patch_size="patch_size", image_size="image_size", activation="hidden_act",
            layer_norm_eps="layer_norm_eps",
        ),
    )  # fmt: skip
    audio: AudioConfig = replace(
        config.audio,
        **lists(
            pick(
                config.audio, hubert, hidden_size="hidden_size", layers="num_hidden_layers",
                heads="num_attention_heads",
                mlp_size="intermediate_size", activation="hidden_act", layer_norm_eps="layer_norm_eps",
                conv_dim="conv_dim",
                conv_kernel="conv_kernel", conv_stride="conv_stride", conv_bias="conv_bias",
                conv_norm="feat_extract_norm",
                conv_activation="feat_extract_activation", projection_layer_norm="feat_proj_layer_norm",
                stable_layer_norm="do_stable_layer_norm", position_kernel="num_conv_pos_embeddings",
                position_groups="num_conv_pos_embedding_groups", position_batch_norm="conv_pos_batch_norm",
            )
        ),
        normalize=_json(processor).get("do_normalize", True) if processor.is_file() else config.audio.normalize,
    )  # fmt: skip
    heads = qwen.get("num_attention_heads", config.language.heads)
    width = qwen.get("hidden_size", config.language.hidden_size)
    language: LanguageConfig = replace(
        config.language,
        **pick(
            config.language, qwen, model_type="model_type", vocab_size="vocab_size", hidden_size="hidden_size",
            layers="num_hidden_layers", heads="num_attention_heads", kv_heads="num_key_value_heads",
            mlp_size="intermediate_size", rms_norm_eps="rms_norm_eps", max_positions="max_position_embeddings",
            tied_embeddings="tie_word_embeddings",
        ),
        head_dim=qwen.get("head_dim") or width // heads,
        rope_theta=float(rope.get("rope_theta") or qwen.get("rope_theta", config.language.rope_theta)),
    )  # fmt: skip
    return replace(config, vision=vision, audio=audio, language=language)


# -- tensors that are not simply copied -------------------------------------------------------------------------------


def _language(found: Tensors, config: NanoEmoXConfig, lora: str) -> Tensors:
    """The language model under the names of its final form: adapters beside the base layers, or merged into them."""
    adapters: dict[str, dict[str, tuple[tuple[int, ...], Loader]]] = {}
    out: Tensors = {}
    for name, tensor in found.items():
        if match := _LORA.fullmatch(name):
            adapters.setdefault(match[1] + match[2], {})[match[3]] = tensor
        elif not (name == "llama_model.lm_head.weight" and config.language.tied_embeddings):
            out[name] = tensor
    if config.lora is None:
        raise CheckpointError(
            "the checkpoint holds no LoRA adapters; give the one of phase 3, or an earlier one beside it"
        )
    scale = config.lora.alpha / config.lora.rank
    if lora == "merge":
        for module, pair in adapters.items():
            name = f"{module}.weight"
            if name not in out or set(pair) != {"A", "B"}:
                raise CheckpointError(f"{module}: adapter without its other half or its base weight")
            shape, base = out[name]
            a, b = pair["A"][1], pair["B"][1]
            out[name] = shape, partial(_merged, base, a, b, scale)
        return out
    kept: Tensors = {}
    for name, tensor in out.items():
        module, _, leaf = name.rpartition(".")
        if name.startswith("llama_model."):
            adapted = module.rpartition(".")[2] in config.lora.targets
            stem = "llama_model.base_model.model." + module.removeprefix("llama_model.")
            name = f"{stem}.base_layer.{leaf}" if adapted else f"{stem}.{leaf}"
        kept[name] = tensor
    for module, pair in adapters.items():
        stem = "llama_model.base_model.model." + module.removeprefix("llama_model.")
        kept |= {f"{stem}.lora_{half}.default.weight": tensor for half, tensor in pair.items()}
    return kept


def _complete(found: Tensors, wanted: dict[str, tuple[int, ...]]) -> None:
    """HuBERT's mask embedding is used in its pre-training only, and some files leave it out."""
    name = "acoustic_encoder.model.masked_spec_embed"
    if name not in found and name in wanted:
        found[name] = wanted[name], lambda: torch.zeros(wanted[name])


def _write_tokenizer(source: Path, folder: Path) -> None:
    """The language model's tokenizer with bos, eos and the five placeholders (architecture section 10)."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RustTokenizer

    try:
        if (source / "tokenizer.json").is_file():
            backend = RustTokenizer.from_file(str(source / "tokenizer.json"))
        else:  # the older vocab.json and merges.txt
            from transformers import AutoTokenizer

            backend = AutoTokenizer.from_pretrained(source, local_files_only=True).backend_tokenizer
    except Exception as error:  # both libraries raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: no tokenizer that can be read ({reason})") from error
    bos, eos = "<|im_start|>", "<|im_end|>"
    if lacking := [token for token in (bos, eos) if backend.token_to_id(token) is None]:
        raise CheckpointError(f"{source}: the tokenizer has no {lacking[0]}")
    order = ("image", "audio", "frames", "face", "fusion")
    backend.add_special_tokens([AddedToken(PLACEHOLDERS[kind], special=True, normalized=False) for kind in order])
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": eos, "pad_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")
