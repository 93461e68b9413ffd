"""Weights and inputs of the parity fixtures: numbers by integer hashing, the same on every machine.

A value depends only on (salt, key, position): crc32 of salt and key seeds a splitmix64 counter stream, whose
top 53 bits become a number uniform on [-sqrt(3), sqrt(3)).
"""

import math
import zlib

import numpy as np
import torch

SALT = "nano-emox/parity/shared/1"
_GOLDEN, _SEED_SPREAD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
_MIX = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]


def stream(key: str, shape) -> np.ndarray:
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        seed = np.uint64(zlib.crc32(f"{SALT}|{key}".encode())) * _SEED_SPREAD
        bits = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN + seed
        for shift, factor in _MIX:
            bits = (bits ^ (bits >> shift)) * factor
        bits ^= bits >> np.uint64(31)
    fraction = (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
    return ((2 * fraction - 1) * math.sqrt(3)).reshape(shape)


def fill(key: str, shape) -> torch.Tensor:
    """fp32 weight for a parameter of this official name. A tied head has its embedding's values."""
    if key.endswith("lm_head.weight"):
        key = key.removesuffix("lm_head.weight") + "model.embed_tokens.weight"
    offset, scale = 0.0, 0.1
    if key.endswith(("weight_g", "weight.original0")) or (len(shape) == 1 and key.endswith("weight")):
        offset = 1.0
    elif len(shape) > 1:
        fixed = {"query_tokens": 0.02, "position_embedding.weight": 0.5}
        scale = next(
            (s for end, s in fixed.items() if key.endswith(end)), 1 / math.sqrt(math.prod(shape[1:]))
        )
    return torch.from_numpy((offset + scale * stream(key, shape)).astype(np.float32))


def signal(name: str, shape, scale: float = 1.0) -> torch.Tensor:
    """fp32 input of zero mean and standard deviation `scale`."""
    return torch.from_numpy((scale * stream(f"input:{name}", shape)).astype(np.float32))
