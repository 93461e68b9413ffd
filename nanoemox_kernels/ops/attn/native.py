"""Softmax attention of short sequences on a CPU: scores in fp32 that never leave the cache, any strides.

PyTorch's own attention is made for long ones; between a few dozen and a few hundred positions most of its time goes to
copies and passes over the scores.
"""

import torch
from torch import Tensor

from ... import _native


def serves(*tensors: Tensor | None) -> bool:
    """Whether `attention` takes these: fp32 or bf16 on a CPU, and the C++ library is there."""
    return (
        _native.library is not None
        and all(t is None or t.device.type == "cpu" for t in tensors)
        and _native.takes(*tensors)
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    sees: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v.

    Args:
        q: [n,H,M,d]; k, v: [n,H,T,d], fp32 or bf16 on the CPU, any strides (a group of heads may share keys by a
            stride of 0).
        bias: [w,H,M,T] in the dtype of q, or what expands to it; item i of the batch has bias i % w.
        scale: default d ** -0.5.
        sees: row m sees the first sees + m keys alone; 0: all of them.
        out: [n,H,M,d], where the result goes; its last stride is 1.

    Returns:
        [n,H,M,d]: `out`, or a view of a new [n,M,H,d].

    Raises:
        RuntimeError: no C++ library. ValueError: shapes or dtypes that do not fit.
    """
    if _native.library is None:
        raise RuntimeError(f"attention needs the C++ library: {_native.why_not}")
    (n, H, M, d), T = q.shape, k.shape[2]
    if k.shape != (n, H, T, d) or v.shape != k.shape or not serves(q, k, v, bias, out) or not T or not d:
        raise ValueError(
            "want q [n,H,M,d] and k, v [n,H,T,d], all fp32 or all bf16 on the CPU, got "
            + ", ".join(f"{t.dtype} {list(t.shape)}" for t in (q, k, v))
        )
    if out is None:
        out = q.new_empty(n, M, H, d).transpose(1, 2)
    elif out.shape != q.shape or out.stride(3) != 1:
        raise ValueError(f"want out {list(q.shape)} with a last stride of 1, got {list(out.shape)}")
    if bias is not None:
        try:
            bias = _native.rows(bias.expand(-1, H, M, T))
        except RuntimeError as error:
            raise ValueError(f"want a bias [w,{H},{M},{T}], got {list(bias.shape)}") from error
    q, k, v = (_native.rows(t) for t in (q, k, v))
    size = _native.library.nx_cpu_attention_scratch(T, d)
    scratch = torch.empty(size + 64, dtype=torch.uint8)
    _native.call(
        "attention", q.dtype, out, q, k, v, bias, scratch.data_ptr() + -scratch.data_ptr() % 64,
        n, H, M, T, d, 1 if bias is None else len(bias), sees, *(s for t in (out, q, k, v) for s in t.stride()[:3]),
        *((0, 0, 0) if bias is None else bias.stride()[:3]), d**-0.5 if scale is None else scale,
    )  # fmt: skip
    return out
