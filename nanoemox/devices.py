"""Device and dtype names."""

import torch

from .errors import UsageError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve(device: str | torch.device, dtype: str | torch.dtype) -> tuple[torch.device, torch.dtype]:
    """Names -> device and dtype, "auto" decided. Raises UsageError."""
    try:
        chosen = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
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
