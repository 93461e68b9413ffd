"""What a bundle is and how it would run here: versions, parts, precision, bytes, the ceiling of decoding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from nanoemox_kernels import is_tuned, probe
from nanoemox_kernels.linear.quantized import BLOCK

from .. import __version__
from ..build import build_empty
from ..bundle.find import find
from ..bundle.folder import CONFIG, sha256
from ..bundle.official_names import shapes
from ..bundle.quantized import SCALES, layout
from ..bundle.tensors import index
from ..config import NanoEmoXConfig
from ..devices import resolve
from ..errors import CheckpointError
from ..loading import check_quantize, check_served, fast_parts

Shapes = dict[str, tuple[int, ...]]  # official name -> shape


def describe_bundle(
    model: str, *, fast: bool, device: str, dtype: str, quantize: str | None
) -> dict[str, Any]:
    """See nanoemox.commands.info.describe."""
    chosen_device, chosen_dtype = resolve(device, dtype)
    folder = find(model)
    config = NanoEmoXConfig.from_json(folder / CONFIG)
    quantize = check_quantize(quantize, config.quantize, folder)
    parts = fast_parts(config, chosen_device, quantize)
    if quantize is not None:
        check_served(quantize, fast, parts["language"].removeprefix("fast"))
    engine = fast and parts["language"] == "fast"

    stored_shapes = _shapes(replace(config, quantize="none"), folder)
    numbers = {name: torch.Size(shape).numel() for name, shape in stored_shapes.items()}
    # The decode engine holds the language model with its adapters merged.
    run_config = replace(config, lora=None, quantize="none") if engine else config
    sizes = _bytes(_shapes(run_config, folder), quantize or "none", chosen_dtype)

    description = {
        "nanoemox": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(chosen_device),
        "dtype": _name(chosen_dtype),
        "settings": _settings(chosen_device),
        "fast": parts if fast else dict.fromkeys(parts, "reference (--no-fast)"),
        "model": config.name,
        "folder": str(folder),
        "sha256": sha256(folder),
        "stored": _stored_dtypes(folder),
        "lora": _adapters(config),
        "parameters": sum(numbers.values()),
        "parameters_by_part": _by_part(numbers),
        "precision": _precision(quantize, chosen_dtype),
        "bytes_by_part": _by_part(sizes),
    }
    if engine:
        description["decode"] = _decode(config, sizes, quantize)
    return description


def _settings(device: torch.device) -> str:
    """Whether the launch settings of the kernels were tuned on this GPU."""
    if device.type != "cuda":
        return f"not needed on {device.type}"
    gpu = torch.cuda.get_device_name(device)
    return f"tuned on {gpu}" if is_tuned(device) else f"default: none are tuned on {gpu}"


def _shapes(config: NanoEmoXConfig, folder: Path) -> Shapes:
    return shapes(build_empty(config, folder), config)


def _stored_dtypes(folder: Path) -> list[str]:
    entries = index(sorted(folder.glob("*.safetensors")))
    if not entries:
        raise CheckpointError(f"{folder}: no *.safetensors in it")
    names = {_name(entry.dtype) for name, entry in entries.items() if not name.endswith(SCALES)}
    return sorted(names)


def _adapters(config: NanoEmoXConfig) -> str:
    if config.lora is None:
        return "merged or none"
    return f"rank {config.lora.rank}, beside the language model"


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _by_part(amounts: dict[str, int]) -> dict[str, int]:
    """Sums over the first component of the official names."""
    totals: dict[str, int] = {}
    for name, amount in amounts.items():
        part = name.split(".")[0]
        totals[part] = totals.get(part, 0) + amount
    return totals


def _bytes(official: Shapes, quantize: str, dtype: torch.dtype) -> dict[str, int]:
    """Official name -> bytes in memory, scales included."""
    totals: dict[str, int] = {}
    for name, part in layout(official, quantize).items():
        size = torch.Size(part.shape).numel() * (part.dtype or dtype).itemsize
        stem = name.removesuffix(SCALES)
        totals[stem] = totals.get(stem, 0) + size
    return totals


def _precision(quantize: str | None, dtype: torch.dtype) -> dict[str, str]:
    name = _name(dtype)
    if quantize is None:
        return {"language": name, "head": name, "encoders": name}
    head = f"int8, the best candidates again in {name}"
    return {"language": quantize, "head": head, "encoders": "int8 layers"}


def _decode(config: NanoEmoXConfig, sizes: dict[str, int], quantize: str | None) -> dict[str, float]:
    """Bytes that every token must read, and the tokens per second that the bandwidth measured now allows."""
    language = config.language
    if quantize:
        numbers = language.vocab_size * language.hidden_size
        head = numbers + 2 * numbers // BLOCK
    else:
        head = next(size for name, size in sizes.items() if "embed_tokens" in name)
    matrices = sum(
        size for name, size in sizes.items() if name.startswith("llama_model") and ".layers." in name
    )
    bandwidth = probe.read_bandwidth()
    total = matrices + head
    return {
        "bytes_a_token": total,
        "read_gigabytes_a_second": round(bandwidth / 1e9, 1),
        "tokens_a_second_at_most": round(bandwidth / total, 1),
    }
