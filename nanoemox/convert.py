"""Official phase checkpoints and their base models -> one bundle, every key accounted for (architecture 15, 16)."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .bundle import CARD, CONFIG, WEIGHTS, audit, new_folder, parameters_on_meta, shapes, write_safetensors
from .config import NanoEmoXConfig
from .errors import CheckpointError, UsageError
from .infer import component_sizes, infer_config
from .language import merge_lora
from .model import NanoEmoX
from .sources import Loader, Tensors, find_components, read_checkpoint, read_components
from .tokenizer import PLACEHOLDERS, Tokenizer

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_UNUSED = re.compile(r"multi_(?:audio|video)_embs\..*")  # used by some fusion variants only
_LORA = re.compile(r"(llama_model\.)base_model\.model\.(.*)\.lora_([AB])\.default\.weight")


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
    paths = find_components(components)
    files = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else list(checkpoint)
    found = read_components(paths)
    trained: Tensors = {}
    for file in files:
        trained |= read_checkpoint(Path(file))
    config = component_sizes(config or NanoEmoXConfig(), paths)
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


def _merged(base: Loader, a: Loader, b: Loader, scale: float) -> Tensor:
    return merge_lora(base().float(), a(), b(), scale)


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
