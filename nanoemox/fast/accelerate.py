"""From a filled reference model to its fast form."""

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
    """A fast model with the weights of `reference`, which is left hollow: its tensors are handed over one by
    one.

    quantize: None, "int8" or "int4", of the language model; the encoders' layers are int8 in either.
    """
    config = reference.config
    weights = TensorStore.of(reference, config, quantize is not None)
    clip = "visual_encoder.model.vision_model."
    makers = {
        "vision": lambda: FastVision(config.vision, weights.under(clip)),
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
    parts = {
        name: makers[name]() if reasons.get(name) == "" else part for name, part in reference.named_children()
    }
    trim_heap()
    return FastNanoEmoX(reference, parts, quantize)


def accelerate_language(
    language: LanguageModel, device: torch.device, quantize: str | None = None
) -> nn.Module:
    """The same for a language model of its own: on the decode engine, or as it is."""
    if why_no_engine(language.base.config, device, quantize):
        return language
    fast = engine_language(language.base, quantize)
    trim_heap()
    return fast
