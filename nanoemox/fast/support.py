"""Which parts of a model have a fast form on a device, and why others do not."""

from typing import Any

import torch

from nanoemox_kernels.decode import cpu_engine
from nanoemox_kernels.linear.quantized import BLOCK

from ..config import NanoEmoXConfig
from ..modules.language import attention_sizes, hugging_face_config
from .layers.linear import ACTIVATIONS


def why_not(config: NanoEmoXConfig, device: torch.device, quantize: str | None = None) -> dict[str, str]:
    """Part -> why it stays the reference, "" where it is fast."""
    vision, audio = config.vision.activation, {config.audio.activation, config.audio.conv_activation}
    reasons = dict.fromkeys(("vision", "audio", "face", "face_head", "fusion"), "")
    if vision not in ACTIVATIONS and vision != "quick_gelu":
        reasons["vision"] = f"activation {vision}"
    if unknown := sorted(audio - ACTIVATIONS.keys()):
        reasons["audio"] = f"activation {unknown[0]}"
    elif config.audio.position_batch_norm:
        reasons["audio"] = "position_batch_norm"
    if config.fusion.type != "multiscale":
        reasons["fusion"] = f"variant {config.fusion.type}"
    for name, branch in (("video_branch", config.video_branch), ("audio_branch", config.audio_branch)):
        reasons[name] = "" if branch.type == "qformer" else "has no fused op"
    return reasons | {"language": why_no_engine(hugging_face_config(config.language), device, quantize)}


def why_no_engine(config: Any, device: torch.device, quantize: str | None = None) -> str:
    """Why a language model (Hugging Face's configuration) stays Hugging Face's;

    "" where the engine runs it.
    """
    if device.type != "cpu":
        return "the decode engine is for the CPU"
    if missing := cpu_engine.why_not():
        return missing
    heads, kv_heads, size = attention_sizes(config)
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if size % 2 or heads % kv_heads:
        return f"{heads} heads of {size} over {kv_heads} have no rotary pairs or no even groups"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    if kind in ("dynamic", "longrope"):
        return f"rotary positions of type {kind} change with the length"
    if getattr(config, "use_sliding_window", False):
        return "a sliding window"
    odd = [width for width in (config.hidden_size, config.intermediate_size, heads * size) if width % BLOCK]
    if quantize is not None and odd:
        return f"{quantize} wants widths that {BLOCK} divides, not {odd[0]}"
    return ""
