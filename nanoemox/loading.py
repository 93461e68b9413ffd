"""From a source to a model that is ready to answer. (`load.py` would shadow the function nanoemox.load.)"""

import os
from pathlib import Path

import torch

from .build import build_empty
from .bundle.fill import fill
from .bundle.find import find
from .bundle.folder import CONFIG
from .bundle.quantized import FORMS
from .config import NanoEmoXConfig
from .devices import resolve
from .errors import UsageError
from .generation.hugging_face import read_config, read_weights
from .generation.standalone import Language
from .generation.tokenizer import Tokenizer, check_vocabulary
from .model import NanoEmoX, reference_language
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
        source: "demo", a bundle folder, or a Hugging Face id, which is fetched into the Hugging Face cache
            unless HF_HUB_OFFLINE is set.
        fast: True loads the accelerated form, for inference; `nanoemox info` lists the parts that have none
            and run as the reference. False loads the plain PyTorch reference, which also trains.
        device: "auto" is cuda where there is a GPU, else cpu.
        dtype: "auto" is bfloat16 where the device multiplies it natively, else float32. float16 is refused:
            it overflows in the language model.
        quantize: None keeps the form of the bundle. "int8" or "int4" quantises the language model, and the
            encoders to int8: only with fast=True, on a CPU, with the decode engine.

    Returns:
        The model in evaluation mode, without gradients, with its tokenizer and templates.

    Raises:
        CheckpointError: no bundle at `source`; missing, unknown or misshapen weights, by name.
        UsageError: an option that does not exist or that this machine cannot serve.

    Source: docs/architecture.md sections 15 and 21.
    """
    device, dtype = resolve(device, dtype)
    folder = find(source)
    config = NanoEmoXConfig.from_json(folder / CONFIG)
    quantize = check_quantize(quantize, config.quantize, folder)
    if quantize is not None:
        check_served(quantize, fast, _why_no_fast_language(config, device, quantize))
    tokenizer = Tokenizer(folder)
    check_vocabulary(tokenizer, config, folder)
    model = build_empty(config, folder / CONFIG)
    fill(model, config, folder, device, dtype)
    reference_language(model).tie()
    model.to(device)  # moves the buffers; the parameters are there already
    _check_filled(model)
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
    """Load a language model alone.

    Args:
        folder: a Hugging Face folder of a qwen2 or llama model in safetensors.
        fast: True is the decode engine on a CPU, and Hugging Face's model elsewhere. False is Hugging Face's
            model everywhere.
        device, dtype: as for `load`.
        quantize: None, "int8" or "int4"; the latter two need the decode engine.

    Returns:
        A Language: `generate` continues prompts.

    Raises:
        CheckpointError: no such model in the folder; missing, unknown or misshapen weights, by name.
        UsageError: an option that does not exist or that this machine cannot serve.

    Source: docs/architecture.md section 9.
    """
    device, dtype = resolve(device, dtype)
    path = Path(folder)
    config = read_config(path)
    quantize = check_quantize(quantize, "none", path)
    from .fast.accelerate import accelerate_language
    from .fast.support import why_no_engine

    if quantize is not None:
        check_served(quantize, fast, why_no_engine(config, device, quantize))
    language = read_weights(path, config, device, dtype)
    model = accelerate_language(language, device, quantize) if fast else language
    return Language(model.eval().requires_grad_(False), path, config)


def _check_filled(model: NanoEmoX) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise RuntimeError(f"no value was loaded for {empty[:5]}")


def check_quantize(quantize: str | None, stored: str, where: Path) -> str | None:
    """The form in which to run.

    Args:
        quantize: what the caller asks for: None, "int8" or "int4".
        stored: what the bundle at `where` holds: "none", "int8" or "int4".

    Raises:
        UsageError: a form that does not exist, or another one than the bundle's.
    """
    if quantize is not None and quantize not in FORMS:
        raise UsageError(f"quantize {quantize!r} does not exist: use {' or '.join(FORMS)}, or leave it out")
    if stored == "none":
        return quantize
    if quantize not in (None, stored):
        raise UsageError(
            f"{where}: holds {stored} weights, so quantize={quantize!r} is not available: leave it out"
        )
    return stored


def check_served(quantize: str, fast: bool, reason: str) -> None:
    """Raises UsageError where quantised weights cannot run: in the reference, or for a `reason`, if any."""
    if not fast:
        raise UsageError(f"{quantize} weights need the accelerated form: leave out fast=False (--no-fast)")
    if reason:
        raise UsageError(f"quantize={quantize!r} needs the decode engine, which cannot run here: {reason}")


def _why_no_fast_language(config: NanoEmoXConfig, device: torch.device, quantize: str | None) -> str:
    from .fast.support import why_not

    return why_not(config, device, quantize)["language"]


def fast_parts(config: NanoEmoXConfig, device: torch.device, quantize: str | None = None) -> dict[str, str]:
    """Part of the model -> "fast", or "reference" and the reason, for load(fast=True)."""
    from .fast.support import why_not

    reasons = why_not(config, device, quantize)
    return {part: f"reference ({reason})" if reason else "fast" for part, reason in reasons.items()}
