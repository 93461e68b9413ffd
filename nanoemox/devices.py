"""Device and dtype names."""

import torch

from .errors import UsageError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve(device: str | torch.device, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of these names.

    Args:
        device: "auto" is cuda where there is a GPU, else cpu.
        dtype: "auto" is bfloat16 where the device multiplies it natively, else float32.

    Raises:
        UsageError: a device that is not available, a dtype that is not supported.
    """
    resolved_device = _resolve_device(device)
    return resolved_device, _resolve_dtype(dtype, resolved_device)


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except Exception as error:  # every backend raises exceptions of its own
        raise UsageError(f"device {str(device)!r} is not available here: use auto, cpu or cuda") from error
    return resolved


def _resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if dtype in ("float16", "fp16", "half", torch.float16):
        raise UsageError("dtype float16 overflows in the language model: use bfloat16 or float32")
    resolved = dtype if isinstance(dtype, torch.dtype) else _DTYPES.get(dtype)
    if resolved is None or resolved not in _DTYPES.values():
        raise UsageError(f"dtype {str(dtype)!r} does not exist: use auto, bfloat16 or float32")
    return resolved


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 products of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
