"""Each op at the model's shapes: ours, the definition in eager PyTorch, the definition under torch.compile."""

import pytest
import torch

import nanoemox_kernels as nk
from nanoemox_kernels.ops.expert_fusion import reference as fusion
from nanoemox_kernels.ops.expert_gate import reference as gate
from nanoemox_kernels.ops.feature_taps import reference as taps
from nanoemox_kernels.ops.temporal_xattn import reference as xattn

E, T, D, H, W = 3, 8, 1024, 512, 1536  # experts, time, encoder width, fusion width, language-model width
C, M, HEADS, P = 256, 4, 4, 768  # face features, queries, heads, projector
BATCHES, DTYPES = (1, 8), (torch.bfloat16, torch.float32)
pytestmark = [
    pytest.mark.parametrize("B", BATCHES),
    pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:]),
]


@pytest.fixture
def make(device, dtype):
    torch.manual_seed(0)

    def tensor(*size):
        return (torch.randn(size) * size[-1] ** -0.5).to(device, dtype)

    return tensor


def compiled(function):
    return torch.compile(function, dynamic=False)


def close(ours, definition):
    """A wrong kernel is never timed."""
    for got, want in zip(ours, definition, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def name(op, dtype, B):
    return f"{op} {str(dtype)[6:]} B={B}"


def test_expert_gate(measure, make, dtype, B):
    args = make(B, E, T, H), make(H, E * H), make(H), make(E, H), make(E)
    close(nk.expert_gate(*args, pooled=True), gate.expert_gate(*args, pooled=True))
    fused = compiled(gate.expert_gate)
    moved, flops = gate.cost(B, E, T, H, pooled=True, itemsize=dtype.itemsize)
    calls = {
        "ours": lambda: nk.expert_gate(*args, pooled=True),
        "eager": lambda: gate.expert_gate(*args, pooled=True),
        "compiled": lambda: fused(*args, pooled=True),
    }
    measure(name("expert_gate", dtype, B), calls, moved, flops)


def test_expert_fusion(measure, make, dtype, B):
    weights = nk.ExpertFusionWeights(
        make(H, D), make(H), make(H, D), make(H), make(E, 3 * H, H), make(E, 3 * H), make(E, H, H), make(E, H),
        make(E, H), make(E, H), make(E, H, H), make(E, H), make(E, H, H), make(E, H), make(H, E * H), make(H),
        make(E, H), make(E), make(W, H), make(W),
    )  # fmt: skip
    folded, audio, vision = nk.fold_expert_fusion(weights), make(B, T, E * D), make(B, T, E * D)
    close(nk.expert_fusion(audio, vision, folded)[:2], fusion.expert_fusion(audio, vision, weights)[:2])
    fused, fused_folded = compiled(fusion.expert_fusion), compiled(fusion.expert_fusion_folded)
    moved, flops = fusion.cost(B, T, T, E, D, D, H, W, itemsize=dtype.itemsize)
    calls = {
        "ours": lambda: nk.expert_fusion(audio, vision, folded),
        "eager": lambda: fusion.expert_fusion(audio, vision, weights),
        "compiled": lambda: fused(audio, vision, weights),
        "compiled folded": lambda: fused_folded(audio, vision, folded),
    }
    measure(name("expert_fusion", dtype, B), calls, moved, flops)


def test_temporal_xattn(measure, make, dtype, B):
    weights = nk.TemporalXattnWeights(
        make(M, C), make(3 * C, C), make(3 * C), make(C, C), make(C), make(P, C), make(P), make(W, P), make(W)
    )
    folded, x = nk.fold_temporal_xattn(weights), make(B, T, C)
    close(nk.temporal_xattn(x, folded)[:1], xattn.temporal_xattn(x, weights)[:1])
    fused, fused_folded = compiled(xattn.temporal_xattn), compiled(xattn.temporal_xattn_folded)
    moved, flops = xattn.cost(B, T, C, M, HEADS, P, W, itemsize=dtype.itemsize)
    calls = {
        "ours": lambda: nk.temporal_xattn(x, folded),
        "eager": lambda: xattn.temporal_xattn(x, weights),
        "compiled": lambda: fused(x, weights),
        "compiled folded": lambda: fused_folded(x, folded),
    }
    measure(name("temporal_xattn", dtype, B), calls, moved, flops)


@pytest.mark.parametrize(("encoder", "N", "mean"), [("vision", 257, False), ("audio", 99, True)])
def test_feature_taps(measure, make, device, dtype, B, encoder, N, mean):
    """The seam between two layers of an encoder, the first of them tapped."""
    hidden, update, weight, bias = make(B * T, N, D), make(B * T, N, D) * 0, make(D), make(D)
    out = torch.zeros(B * T, D, device=device)
    tap = nk.Tap(out, select="mean" if mean else "cls")
    rest = ([out], [1.0], [False], [mean])
    close(
        [nk.feature_taps_(hidden, update, weight, bias)],
        [taps.feature_taps_(hidden, update, weight, bias, 1e-5, [], [], [], [])],
    )
    fused = compiled(taps.feature_taps_)
    moved, flops = taps.cost(B * T, N, D, 1, itemsize=dtype.itemsize)
    calls = {
        "ours": lambda: nk.feature_taps_(hidden, update, weight, bias, taps=[tap]),
        "eager": lambda: taps.feature_taps_(hidden, update, weight, bias, 1e-5, *rest),
        "compiled": lambda: fused(hidden, update, weight, bias, 1e-5, *rest),
    }
    measure(name(f"feature_taps_ {encoder}", dtype, B), calls, moved, flops)


@pytest.mark.parametrize("select", ["mean", "cls"])
def test_tap_pool(measure, make, device, dtype, B, select):
    hidden, out = make(B * T, 99, D), torch.zeros(B * T, D, device=device)
    fused = compiled(taps.tap_pool_)
    rows = 99 if select == "mean" else 1
    calls = {
        "ours": lambda: nk.tap_pool_(out, hidden, 0.25, select),
        "eager": lambda: taps.tap_pool_(out, hidden, 0.25, select == "mean"),
        "compiled": lambda: fused(out, hidden, 0.25, select == "mean"),
    }
    measure(
        name(f"tap_pool_ {select}", dtype, B),
        calls,
        B * T * D * (rows * dtype.itemsize + 8),
        B * T * D * rows,
    )
