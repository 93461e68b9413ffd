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

from ..build import build_empty
from ..bundle.folder import CARD, CONFIG, WEIGHTS, new_folder
from ..bundle.official_names import shapes
from ..bundle.tensors import audit, write_safetensors
from ..config import NanoEmoXConfig
from ..devices import resolve
from ..errors import CheckpointError, UsageError
from ..generation.tokenizer import PLACEHOLDERS, Tokenizer, check_vocabulary
from ..modules.language import merge_lora
from .checkpoints import Loader, Tensors, find_components, read_checkpoint, read_components
from .sizes import component_sizes, infer_config

_UNUSED = re.compile(r"multi_(?:audio|video)_embs\..*")  # used by some fusion variants only
_LORA = re.compile(r"llama_model\.base_model\.model\..*\.lora_[AB]\.default\.weight")


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
    stored = resolve("cpu", dtype)[1]
    if lora not in ("keep", "merge"):
        raise UsageError(f"lora {lora!r} does not exist: use keep or merge")
    files = (
        [Path(checkpoint)]
        if isinstance(checkpoint, str | os.PathLike)
        else [Path(file) for file in checkpoint]
    )
    paths = find_components(components, files)
    _refuse_sources(Path(out), [*files, *paths.values()])
    found = read_components(paths)
    trained: Tensors = {}
    for file in files:
        trained |= read_checkpoint(file)
    config = component_sizes(config or NanoEmoXConfig(), paths)
    config = infer_config(config, {name: shape for name, (shape, _) in (found | trained).items()})
    if config.fusion.type not in ("attention", "qformer"):
        trained = {name: tensor for name, tensor in trained.items() if not _UNUSED.fullmatch(name)}
    found = beside_adapters(found | trained, config)
    wanted = shapes(build_empty(config, "the files' sizes"), config)
    complete(found, wanted)
    where = " + ".join([*map(str, files), "base models"])
    audit(
        {name: shape for name, (shape, _) in found.items()}, wanted, where, "named as in the official model"
    )
    if lora == "merge":
        found = _merge(found, config)
        config = replace(config, lora=None)
        wanted = shapes(build_empty(config, "the files' sizes"), config)
    with new_folder(out) as folder:
        write_tokenizer(paths["qwen"], folder)
        check_vocabulary(Tokenizer(folder), config, paths["qwen"])
        write_safetensors(folder / WEIGHTS, wanted, stored, lambda name: found[name][1]())
        config.to_json(folder / CONFIG)
        names = ", ".join(file.name for file in files)
        (folder / CARD).write_text(
            f"# {config.name}\n\nConverted by nanoemox from {names}; adapters: {lora}.\n"
        )
    return Path(out)


def _merged(base: Loader, a: Loader, b: Loader, scale: float) -> Tensor:
    return merge_lora(base().float(), a(), b(), scale)


_ADAPTED = "llama_model.base_model.model."


def beside_adapters(found: Tensors, config: NanoEmoXConfig) -> Tensors:
    """The language model under the names that it has beside its adapters."""
    if config.lora is None:
        raise CheckpointError(
            "the checkpoint holds no LoRA adapters; give the one of phase 3, or an earlier one beside it"
        )
    out: Tensors = {}
    for name, tensor in found.items():
        if name == "llama_model.lm_head.weight" and config.language.tied_embeddings:
            continue
        if name.startswith("llama_model.") and not _LORA.fullmatch(name):
            module, _, leaf = name.removeprefix("llama_model.").rpartition(".")
            adapted = module.rpartition(".")[2] in config.lora.targets
            name = f"{_ADAPTED}{module}.{'base_layer.' if adapted else ''}{leaf}"
        out[name] = tensor
    return out


def _merge(found: Tensors, config: NanoEmoXConfig) -> Tensors:
    """The language model with its adapters merged in, under its plain names. `found` has passed the audit."""
    assert config.lora is not None
    out: Tensors = {}
    for name, (shape, read) in found.items():
        if _LORA.fullmatch(name):
            continue
        if name.endswith(".base_layer.weight"):
            a, b = (found[name.replace("base_layer", f"lora_{half}.default")][1] for half in "AB")
            read = partial(_merged, read, a, b, config.lora.alpha / config.lora.rank)
        plain = name.replace(_ADAPTED, "llama_model.").replace(".base_layer.", ".")
        out[plain] = shape, read
    return out


def _refuse_sources(out: Path, sources: list[Path]) -> None:
    final = out.resolve()
    for source in (path.resolve() for path in sources):
        if final == source or final in source.parents:
            raise CheckpointError(
                f"{out}: is or holds {source.name}, which is to be read; choose another name"
            )


def complete(found: Tensors, wanted: dict[str, tuple[int, ...]]) -> None:
    """HuBERT's mask embedding is used in its pre-training only, and some files leave it out."""
    name = "acoustic_encoder.model.masked_spec_embed"
    if name not in found and name in wanted:
        found[name] = wanted[name], lambda: torch.zeros(wanted[name])


def write_tokenizer(source: Path, folder: Path) -> None:
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
    backend.add_special_tokens(
        [AddedToken(PLACEHOLDERS[kind], special=True, normalized=False) for kind in order]
    )
    backend.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": eos,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")
