"""From a name or a folder to a model that is ready to answer. (Not load.py: that would shadow nanoemox.load.)"""

import os
import re
from pathlib import Path

import torch

from .bundle import CONFIG, build_empty, fill
from .config import NanoEmoXConfig
from .errors import CheckpointError, UsageError
from .model import NanoEmoX
from .prompts import Templates
from .quantized import FORMS
from .text import Language, read_config, read_weights
from .tokenizer import Tokenizer

DEMO = Path(__file__).parent / "demo"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FILES = ["config.json", "*.safetensors", *Tokenizer.FILES, Templates.FILE, "README.md"]


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
    if left := [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]:
        raise RuntimeError(f"never given a value: {left[:5]}")
    model.tokenizer, model.templates, model.source = tokenizer, Templates.from_folder(folder), folder
    if fast:
        from .fast import accelerate

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
    from .fast import accelerate_language, why_no_engine

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
        raise UsageError(f"{where}: holds {held} weights, so quantize={quantize!r} cannot be had of it: leave it out")
    return quantize if held == "none" else held


def check_served(quantize: str, fast: bool, reason: str) -> None:
    """Raises UsageError where quantised weights cannot run."""
    if not fast:
        raise UsageError(f"{quantize} weights need the accelerated form: leave out fast=False (--no-fast)")
    if reason:
        raise UsageError(f"quantize={quantize!r} needs the decode engine, which cannot run here: {reason}")


def _why_not_language(config: NanoEmoXConfig, device: torch.device, quantize: str | None) -> str:
    from .fast import why_not

    return why_not(config, device, quantize)["language"]


def fast_parts(config: NanoEmoXConfig, device: torch.device, quantize: str | None = None) -> dict[str, str]:
    """Part of the model -> "fast", or "reference" and why, for load(fast=True)."""
    from .fast import why_not

    reasons = why_not(config, device, quantize)
    return {part: f"reference ({reason})" if reason else "fast" for part, reason in reasons.items()}


def resolve(device: str | torch.device, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    """Names -> device and dtype, "auto" decided. Raises UsageError."""
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.zeros(1, device=chosen).item()
    except Exception as error:  # every backend raises its own kind
        raise UsageError(f"device {str(device)!r} is not available here: use auto, cpu or cuda") from error
    if dtype == "auto":
        return chosen, torch.bfloat16 if _multiplies_bfloat16(chosen) else torch.float32
    if dtype in ("float16", "fp16", "half", torch.float16):
        raise UsageError("dtype float16 overflows in the language model: use bfloat16 or float32")
    wanted = dtype if isinstance(dtype, torch.dtype) else _DTYPES.get(dtype)
    if wanted not in _DTYPES.values():
        raise UsageError(f"dtype {str(dtype)!r} does not exist: use auto, bfloat16 or float32")
    return chosen, wanted  # type: ignore[return-value]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def find(source: str | os.PathLike) -> Path:
    """The bundle's folder; fetched into the Hugging Face cache if `source` is an id."""
    name = os.fspath(source)
    folder = DEMO if name == "demo" else Path(name)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder}: no {CONFIG} in it, so no bundle; `nanoemox convert` makes one")
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{folder}: a file; a bundle is a folder, `nanoemox convert` makes one of official checkpoints"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(f"{name}: no such folder; use demo, a bundle folder or a Hugging Face id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's clients raise a dozen unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name}: neither a folder nor to be had from the Hugging Face hub ({reason})") from error
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name}: the repository holds no {CONFIG}, so it is no bundle")
    return folder


def check_vocabulary(tokenizer: Tokenizer, config: NanoEmoXConfig, where: object) -> None:
    """Raises CheckpointError where the tokenizer has ids that the language model cannot look up."""
    # Placeholders are never looked up in the embedding, so their ids may lie past its end (architecture section 9).
    looked_up = set(tokenizer.backend.get_vocab().values()) - set(tokenizer.placeholder_ids.values())
    if max(looked_up) >= config.language.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer knows {max(looked_up) + 1} ids, the language model {config.language.vocab_size}; "
            "they do not belong together"
        )
