"""Schema, checks and dispatch of expert_gate."""

from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._library import KERNEL_DTYPES, register
from . import reference
from .native import expert_gate_cpu


def _cuda(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, pooled: bool
) -> tuple[Tensor, Tensor]:
    if any(t.dtype not in KERNEL_DTYPES for t in (experts, w1, b1, w2, b2)):
        return _reference(experts, w1, b1, w2, b2, pooled)
    from .kernel import expert_gate_fwd  # the only import of Triton

    return expert_gate_fwd(experts, w1, b1, w2, b2, pooled)


def _cpu(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, pooled: bool
) -> tuple[Tensor, Tensor]:
    if not _native.takes(experts, w1, w2):
        return _reference(experts, w1, b1, w2, b2, pooled)
    return expert_gate_cpu(experts, w1, b1, w2, b2, pooled)


def _reference(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, pooled: bool
) -> tuple[Tensor, Tensor]:
    out, gates = reference.expert_gate(experts, w1, b1, w2, b2, pooled=pooled)
    return out.contiguous(), gates.contiguous()


def _fake(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, pooled: bool
) -> tuple[Tensor, Tensor]:
    B, E, T, H = experts.shape
    gates = experts.new_empty(B, E, dtype=torch.promote_types(experts.dtype, torch.float32))
    return experts.new_empty((B, H) if pooled else (B, T, H)), gates


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.pooled = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor, grad_gates: Tensor) -> tuple:
    with torch.enable_grad():  # training is rare: no second kernel
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        outputs = reference.expert_gate(*inputs, pooled=ctx.pooled)
        return (*torch.autograd.grad(outputs, inputs, (grad_out, grad_gates)), None)


_op = register(
    "expert_gate(Tensor experts, Tensor w1, Tensor b1, Tensor w2, Tensor b2, bool pooled)"
    " -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    cuda=_cuda,
    cpu=_cpu,
    grad=(_setup, _backward),
)


def expert_gate(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, pooled: bool = False
) -> tuple[Tensor, Tensor]:
    """Gated sum of experts, G1*E1 + G2*E2 + ..., with gates computed from the means of all experts.

    Args:
        experts: [B,E,T,H], any float dtype, any strides; E and T at least 1.
        w1: [H,E*H], weight of the gate's first linear layer, any float dtype.
        b1: [H], its bias; an erf GELU follows.
        w2: [E,H], weight of the second.
        b2: [E], its bias; a softmax follows.
        pooled: return the mean over T, without writing [B,T,H].

    Returns:
        out [B,T,H], or [B,H] if pooled, in the dtype of `experts`; gates [B,E] in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit together.

    Source: docs/architecture.md section 7; docs/ops/expert_gate.md.
    """
    if experts.ndim != 4 or experts.shape[1] < 1 or experts.shape[2] < 1:
        raise ValueError(f"want experts [B, E, T, H] with E and T of at least 1, got {list(experts.shape)}")
    E, H = experts.shape[1], experts.shape[3]
    expected = {"w1": (H, E * H), "b1": (H,), "w2": (E, H), "b2": (E,)}
    for (name, shape), tensor in zip(expected.items(), (w1, b1, w2, b2), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"want {name} {list(shape)} for experts {list(experts.shape)}, got {list(tensor.shape)}"
            )
    return _op(experts, w1, b1, w2, b2, pooled)
