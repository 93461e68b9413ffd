"""Which parts of a model have a fast form on a device, and why others do not."""

from typing import Any

import torch

from nanoemox_kernels.decode import cpu_engine
from nanoemox_kernels.linear.quantized import BLOCK

from ..config import NanoEmoXConfig
from ..modules.language import attention_sizes, hugging_face_config
from .layers.linear import ACTIVATIONS


def why_not(config: NanoEmoXConfig, device: torch.device, quantize: str | None = None) -> dict[str, str]:
    """Why parts of a model remain the reference.

    Args:
        config: of the model.
        device: on which it is to run.
        quantize: format of the language model's weights: None, "int8" or "int4".

    Returns:
        Part of the model -> reason, "" where there is a fast form.
    """
    reasons = dict.fromkeys(("vision", "audio", "face", "face_head", "fusion"), "")
    if config.vision.activation not in ACTIVATIONS and config.vision.activation != "quick_gelu":
        reasons["vision"] = f"activation {config.vision.activation}"
    unknown = sorted({config.audio.activation, config.audio.conv_activation} - ACTIVATIONS.keys())
    if unknown:
        reasons["audio"] = f"activation {unknown[0]}"
    elif config.audio.position_batch_norm:
        reasons["audio"] = "position_batch_norm"
    if config.fusion.type != "multiscale":
        reasons["fusion"] = f"variant {config.fusion.type}"
    for name, branch in (("video_branch", config.video_branch), ("audio_branch", config.audio_branch)):
        reasons[name] = "" if branch.type == "qformer" else "has no fused op"
    reasons["language"] = why_no_engine(hugging_face_config(config.language), device, quantize)
    return reasons


def why_no_engine(config: Any, device: torch.device, quantize: str | None = None) -> str:
    """Why a language model runs on Hugging Face's modules and not on the decode engine.

    Args:
        config: Hugging Face's configuration of a qwen2 or llama model.
        device: on which it is to run.
        quantize: format of its weights: None, "int8" or "int4".

    Returns:
        The reason, "" where the engine runs it.
    """
    if device.type != "cpu":
        return "the decode engine is for the CPU"
    reason = cpu_engine.why_not()
    if reason:
        return reason
    heads, kv_heads, head_size = attention_sizes(config)
    if head_size % 2 or heads % kv_heads:
        return f"{heads} heads of {head_size} over {kv_heads} have no rotary pairs or no even groups"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        return f"rotary positions of type {rope_type} change with the length"
    if getattr(config, "use_sliding_window", False):
        return "a sliding window"
    widths = (config.hidden_size, config.intermediate_size, heads * head_size)
    indivisible = [width for width in widths if width % BLOCK]
    if quantize is not None and indivisible:
        return f"{quantize} wants widths that {BLOCK} divides, not {indivisible[0]}"
    return ""
