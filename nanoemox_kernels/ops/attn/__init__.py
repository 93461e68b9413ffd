"""Attention of short sequences: `attn`, and its C++ form `attention` with a bias and a causal offset."""

from .native import attention, serves
from .op import attn

__all__ = ["attention", "attn", "serves"]
