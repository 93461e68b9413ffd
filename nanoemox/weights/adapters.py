"""The language model beside its LoRA adapters, and with them merged."""

import re
from functools import partial

from torch import Tensor

from ..config import NanoEmoXConfig
from ..errors import CheckpointError
from ..modules.language import merge_lora
from .files import Loader, Stored, Tensors

_PLAIN = "llama_model."
_ADAPTED = "llama_model.base_model.model."
_LORA = re.compile(r"llama_model\.base_model\.model\..*\.lora_[AB]\.default\.weight")


def beside_adapters(tensors: Tensors, config: NanoEmoXConfig) -> Tensors:
    """The same tensors, those of the language model under the names that they have beside adapters."""
    if config.lora is None:
        raise CheckpointError(
            "the checkpoint holds no LoRA adapters; give the one of phase 3, or an earlier one beside it"
        )
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name == "llama_model.lm_head.weight" and config.language.tied_embeddings:
            continue
        if name.startswith(_PLAIN) and not _LORA.fullmatch(name):
            module, _, leaf = name.removeprefix(_PLAIN).rpartition(".")
            has_adapter = module.rpartition(".")[2] in config.lora.targets
            name = f"{_ADAPTED}{module}.{'base_layer.' if has_adapter else ''}{leaf}"
        renamed[name] = tensor
    return renamed


def merge_adapters(tensors: Tensors, config: NanoEmoXConfig) -> Tensors:
    """The same tensors with the adapters merged into the language model, under its plain names.

    No adapter may be missing: `tensors` has passed the audit.
    """
    assert config.lora is not None
    scale = config.lora.alpha / config.lora.rank
    merged: Tensors = {}
    for name, (shape, read) in tensors.items():
        if _LORA.fullmatch(name):
            continue
        if name.endswith(".base_layer.weight"):
            a = tensors[name.replace("base_layer", "lora_A.default")]
            b = tensors[name.replace("base_layer", "lora_B.default")]
            read = partial(_merge, read, a.read, b.read, scale)
        plain = name.replace(_ADAPTED, _PLAIN).replace(".base_layer.", ".")
        merged[plain] = Stored(shape, read)
    return merged


def _merge(base: Loader, a: Loader, b: Loader, scale: float) -> Tensor:
    return merge_lora(base().float(), a(), b(), scale)
