"""From a filled reference model to its fast form (docs/architecture.md section 22)."""

import torch
from torch import nn

from ..model import NanoEmoX, reference_language
from ..modules.language import LanguageModel
from .audio import FastAudio
from .decode.adapters import merge_adapters
from .decode.build import engine_language
from .face import FastFace, FastFaceHead
from .fusion import FastFusion
from .layers.memory import trim_heap
from .layers.tensor_store import TensorStore
from .model import FastNanoEmoX
from .qformer import FastQFormerBranch
from .support import why_no_engine, why_not
from .vision import FastVision


def accelerate(reference: NanoEmoX, quantize: str | None = None) -> NanoEmoX:
    """Build the fast form of a model.

    Args:
        reference: a filled reference model. Its tensors are taken one by one, and it is unusable afterwards.
        quantize: format of the language model's weights: None, "int8" or "int4"; the encoders' layers are
            int8 with either.

    Returns:
        The fast model; parts without a fast form (`why_not`) are those of the reference.
    """
    config = reference.config
    weights = TensorStore.of(reference, config, quantize is not None)
    clip = weights.under("visual_encoder.model.vision_model.")
    builders = {
        "vision": lambda: FastVision(config.vision, clip),
        "audio": lambda: FastAudio(config.audio, weights.under("acoustic_encoder.model.")),
        "face": lambda: FastFace(config.face, weights.under("facial_encoder.facexformer.")),
        "face_head": lambda: FastFaceHead(config.face, weights.under("facial_encoder.")),
        "video_branch": lambda: FastQFormerBranch(config.qformer, weights, "video"),
        "audio_branch": lambda: FastQFormerBranch(config.qformer, weights, "audio"),
        "fusion": lambda: FastFusion(config.fusion, weights, len(config.vision.taps)),
        "language": lambda: engine_language(reference_language(reference).base, quantize),
    }
    reasons = why_not(config, reference.device, quantize)
    if reasons["language"] and config.lora is not None:
        merge_adapters(reference_language(reference))
    parts: dict[str, nn.Module] = {}
    for name, part in reference.named_children():
        has_fast_form = reasons.get(name) == ""
        parts[name] = builders[name]() if has_fast_form else part
    trim_heap()
    return FastNanoEmoX(reference, parts, quantize)


def accelerate_language(
    language: LanguageModel, device: torch.device, quantize: str | None = None
) -> nn.Module:
    """Build the fast form of a language model on its own.

    Args:
        language: filled. With a fast form, its tensors are taken and it is unusable afterwards.
        device: on which it is to run.
        quantize: format of its weights: None, "int8" or "int4".

    Returns:
        The language model on the decode engine, or `language` where the engine does not run it.
    """
    if why_no_engine(language.base.config, device, quantize):
        return language
    fast = engine_language(language.base, quantize)
    trim_heap()
    return fast
