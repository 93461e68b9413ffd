"""From a name or a folder to a model that is ready to answer. (Not load.py: that would shadow nanoemox.load.)"""

import os
from pathlib import Path

import torch

from .build import build_empty
from .bundle.find import find
from .bundle.folder import CONFIG
from .bundle.quantized import FORMS
from .bundle.tensors import fill
from .config import NanoEmoXConfig
from .devices import resolve
from .errors import UsageError
from .generation.standalone import Language, read_config, read_weights
from .generation.tokenizer import Tokenizer, check_vocabulary
from .model import NanoEmoX
from .prompts import Templates


def load(
    source: str | os.PathLike = "demo",
    *,
    fast: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
) -> NanoEmoX:
    """Load a bundle, ready for inference.

    Args:
        source: "demo", a bundle folder, or a Hugging Face id (through its cache; HF_HUB_OFFLINE is honoured).
        fast: the accelerated form, for inference; `nanoemox info` says which parts have none. False: the plain
            PyTorch reference, which also trains.
        device: "auto" is cuda where there is one, else cpu.
        dtype: "auto" is bfloat16 where the device multiplies it natively, else float32. float16 overflows in the
            language model and is refused.
        quantize: None; "int8" or "int4", of the language model, with the encoders in int8: on a CPU with the decode
            engine, in the fast form. None takes a quantised bundle as it is.

    Raises:
        CheckpointError: missing, extra or misshapen weights, by name; no bundle at `source`.
        UsageError: an option that does not exist or that this machine cannot serve.
    """
    device, dtype = resolve(device, dtype)
    folder = find(source)
    config = NanoEmoXConfig.from_json(folder / CONFIG)
    quantize = check_quantize(quantize, config.quantize, folder)
    if quantize is not None:
        check_served(quantize, fast, _why_not_language(config, device, quantize))
    tokenizer = Tokenizer(folder)
    check_vocabulary(tokenizer, config, folder)
    model = build_empty(config, folder / CONFIG)
    fill(model, config, folder, device, dtype)
    model.language.tie()
    model.to(device)  # the buffers
    if left := [
        name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta
    ]:
        raise RuntimeError(f"never given a value: {left[:5]}")
    model.tokenizer, model.templates, model.source = tokenizer, Templates.from_folder(folder), folder
    if fast:
        from .fast.accelerate import accelerate

        model = accelerate(model, quantize)
    return model.eval().requires_grad_(False)


def load_language(
    folder: str | os.PathLike,
    *,
    fast: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
) -> Language:
    """Load a language model alone: any Hugging Face folder of a qwen2 or llama model in safetensors.

    Args as for `load`: on a CPU the fast form is the decode engine, which int8 and int4 need.

    Raises:
        CheckpointError: no such model there; missing, extra or misshapen weights, by name.
        UsageError: an option that does not exist or that this machine cannot serve.
    """
    device, dtype = resolve(device, dtype)
    base = read_config(Path(folder))
    quantize = check_quantize(quantize, "none", Path(folder))
    from .fast.accelerate import accelerate_language
    from .fast.support import why_no_engine

    if quantize is not None:
        check_served(quantize, fast, why_no_engine(base, device, quantize))
    language = read_weights(Path(folder), base, device, dtype)
    model = accelerate_language(language, device, quantize) if fast else language
    return Language(model.eval().requires_grad_(False), Path(folder), base)


def check_quantize(quantize: str | None, held: str, where: Path) -> str | None:
    """What is asked for and what a bundle holds, as one. Raises UsageError."""
    if quantize is not None and quantize not in FORMS:
        raise UsageError(f"quantize {quantize!r} does not exist: use {' or '.join(FORMS)}, or leave it out")
    if held != "none" and quantize not in (None, held):
        raise UsageError(
            f"{where}: holds {held} weights, so quantize={quantize!r} cannot be had of it: leave it out"
        )
    return quantize if held == "none" else held


def check_served(quantize: str, fast: bool, reason: str) -> None:
    """Raises UsageError where quantised weights cannot run."""
    if not fast:
        raise UsageError(f"{quantize} weights need the accelerated form: leave out fast=False (--no-fast)")
    if reason:
        raise UsageError(f"quantize={quantize!r} needs the decode engine, which cannot run here: {reason}")


def _why_not_language(config: NanoEmoXConfig, device: torch.device, quantize: str | None) -> str:
    from .fast.support import why_not

    return why_not(config, device, quantize)["language"]


def fast_parts(config: NanoEmoXConfig, device: torch.device, quantize: str | None = None) -> dict[str, str]:
    """Part of the model -> "fast", or "reference" and why, for load(fast=True)."""
    from .fast.support import why_not

    reasons = why_not(config, device, quantize)
    return {part: f"reference ({reason})" if reason else "fast" for part, reason in reasons.items()}
