"""What a bundle is and how it would run here: versions, parts, precision, bytes, the ceiling of decoding."""

from dataclasses import replace
from typing import Any

import torch
import transformers

from nanoemox_kernels import probe
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


def describe(model: str, *, fast: bool, device: str, dtype: str, quantize: str | None) -> dict[str, Any]:
    """Everything `nanoemox info` shows. Raises as `load` does, but reads no weight."""
    where, kind = resolve(device, dtype)
    folder = find(model)
    config = NanoEmoXConfig.from_json(folder / CONFIG)
    quantize = check_quantize(quantize, config.quantize, folder)
    parts = fast_parts(config, where, quantize)
    if quantize is not None:
        check_served(quantize, fast, parts["language"].removeprefix("fast"))
    entries = index(sorted(folder.glob("*.safetensors")))
    if not entries:
        raise CheckpointError(f"{folder}: no *.safetensors in it")
    stored = {
        str(entry.dtype).removeprefix("torch.")
        for name, entry in entries.items()
        if not name.endswith(SCALES)
    }
    whole = shapes(build_empty(replace(config, quantize="none"), folder), config)
    engine = fast and parts["language"] == "fast"
    merged = replace(config, lora=None, quantize="none") if engine else config
    official = shapes(build_empty(merged, folder), merged)
    held = _bytes(official, quantize or "none", kind)
    info = {
        "nanoemox": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(where),
        "dtype": _name(kind),
        "fast": parts if fast else dict.fromkeys(parts, "reference (--no-fast)"),
        "model": config.name,
        "folder": str(folder),
        "sha256": sha256(folder),
        "stored": sorted(stored),
        "lora": "merged or none"
        if config.lora is None
        else f"rank {config.lora.rank}, beside the language model",
        "parameters": sum(torch.Size(shape).numel() for shape in whole.values()),
        "parameters_by_part": _by_part({name: torch.Size(shape).numel() for name, shape in whole.items()}),
        "precision": _precision(quantize, kind),
        "bytes_by_part": _by_part(held),
    }
    if engine:
        info["decode"] = _decode(config, held, quantize)
    return info


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by_part(amounts: dict[str, int]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, amount in amounts.items():
        out[name.split(".")[0]] = out.get(name.split(".")[0], 0) + amount
    return out


def _bytes(official: dict[str, tuple[int, ...]], quantize: str, dtype: torch.dtype) -> dict[str, int]:
    """Official name -> bytes in memory, scales included."""
    out: dict[str, int] = {}
    for name, part in layout(official, quantize).items():
        size = torch.Size(part.shape).numel() * (part.dtype or dtype).itemsize
        stem = name.removesuffix(SCALES)
        out[stem] = out.get(stem, 0) + size
    return out


def _precision(quantize: str | None, dtype: torch.dtype) -> dict[str, str]:
    name = _name(dtype)
    if quantize is None:
        return {"language": name, "head": name, "encoders": name}
    return {"language": quantize, "head": f"int8, the best again in {name}", "encoders": "int8 layers"}


def _decode(config: NanoEmoXConfig, held: dict[str, int], quantize: str | None) -> dict[str, float]:
    """The least that a token must read, and how many a second that allows at the bandwidth measured now."""
    c = config.language
    numbers = c.vocab_size * c.hidden_size
    head = (
        numbers + 2 * numbers // BLOCK
        if quantize
        else next(v for k, v in held.items() if "embed_tokens" in k)
    )
    matrices = sum(
        amount for name, amount in held.items() if ".layers." in name and name.startswith("llama_model")
    )
    bandwidth = probe.read_bandwidth()
    total = matrices + head
    return {
        "bytes_a_token": total,
        "read_gigabytes_a_second": round(bandwidth / 1e9, 1),
        "tokens_a_second_at_most": round(bandwidth / total, 1),
    }
