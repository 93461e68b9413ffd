"""Softmax attention on the C++ library, for sequences of a few dozen to a few hundred positions.

The scores stay in the CPU's cache, in fp32; the tensors may have any strides. PyTorch's attention is
optimised for long sequences: at these lengths it spends most of its time on copies and on passes over the
scores.
"""

from torch import Tensor

from ... import _native


def serves(*tensors: Tensor | None) -> bool:
    """Whether `attention` supports these tensors: all fp32 or all bf16, on the CPU, with the C++ library."""
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
    causal_offset: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v.

    Args:
        q: [n,H,M,d], fp32 or bf16 on the CPU, any strides.
        k: [n,H,T,d], in the dtype of q, any strides: heads of a group share keys with a stride of 0.
        v: [n,H,T,d], like k.
        bias: broadcastable to [w,H,M,T], in the dtype of q; item i of the batch uses bias i % w.
        scale: factor of the scores; default: d ** -0.5.
        causal_offset: if not 0, query m attends to the first causal_offset + m keys only.
        out: [n,H,M,d], in the dtype of q, last stride 1: where to write the result.

    Returns:
        [n,H,M,d] in the dtype of q: `out`, or a view of a new tensor [n,M,H,d].

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
    biases = 1 if bias is None else len(bias)
    strides = [stride for t in (out, q, k, v) for stride in t.stride()[:3]]
    bias_strides = (0, 0, 0) if bias is None else bias.stride()[:3]
    _native.call(
        "attention", q.dtype, out, q, k, v, bias, _native.attention_scratch(T, d),
        n, H, M, T, d, biases, causal_offset, *strides, *bias_strides, d**-0.5 if scale is None else scale,
    )  # fmt: skip
    return out
