"""expert_gate in plain PyTorch: the definition that every other implementation is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_gate(
    experts: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, pooled: bool = False
) -> tuple[Tensor, Tensor]:
    """p = mean_t concat_e experts[:, e]; G = softmax(W2 gelu(W1 p + b1) + b2); out = sum_e G_e experts[:, e].

    `pooled` takes the mean over T of out. Everything is computed in fp32 or wider.
    """
    acc = torch.promote_types(experts.dtype, torch.float32)
    x, w1, b1, w2, b2 = (t.to(acc) for t in (experts, w1, b1, w2, b2))
    means = x.mean(2)
    gates = F.linear(F.gelu(F.linear(means.flatten(1), w1, b1)), w2, b2).softmax(-1)
    out = torch.einsum("be,beh->bh", gates, means) if pooled else torch.einsum("be,beth->bth", gates, x)
    return out.to(experts.dtype), gates


def cost(B: int, E: int, T: int, H: int, *, pooled: bool = False, itemsize: int = 2) -> tuple[int, int]:
    """(bytes moved at least, FLOPs)."""
    weights = H * E * H + H + E * H + E
    out = B * H if pooled else B * T * H
    flops = B * (E * T * H + 2 * H * E * H + 2 * E * H + 2 * E * (H if pooled else T * H))
    return itemsize * (B * E * T * H + weights + out) + 4 * B * E, flops
