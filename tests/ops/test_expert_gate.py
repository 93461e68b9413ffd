"""expert_gate: kernels and gradient against the definition, odd inputs, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, double, random

import nanoemox_kernels as nk
from nanoemox_kernels.ops.expert_gate import reference
from nanoemox_kernels.ops.expert_gate.kernel import expert_gate_fwd

SHAPES = [
    (1, 3, 8, 512),
    (2, 3, 5, 33),
    (1, 1, 1, 1),
    (3, 2, 7, 100),
    (0, 3, 8, 16),
]  # the model's, odd, smallest, empty


def make(shape, dtype, device, scale=1.0):
    B, E, T, H = shape
    experts = random(shape, dtype, device, scale)
    w1, w2 = random((H, E * H), dtype, device, (E * H) ** -0.5), random((E, H), dtype, device, H**-0.5)
    return experts, w1, random((H,), dtype, device, 0.1), w2, random((E,), dtype, device, 0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pooled", [False, True])
def test_kernel_matches_the_definition(shape, dtype, pooled, device):
    inputs = make(shape, dtype, device)
    got, low = expert_gate_fwd(*inputs, pooled), reference.expert_gate(*inputs, pooled=pooled)
    exact = reference.expert_gate(*double(inputs), pooled=pooled)
    for g, w, e in zip(got, low, exact, strict=True):
        assert_as_good_as(g, w, e)


def test_strided_inputs_and_extreme_values(device):
    experts, w1, b1, w2, b2 = make((2, 3, 4, 48), torch.float32, device, 1e4)
    views = experts.transpose(1, 2).contiguous().transpose(1, 2), w1.T.contiguous().T, b1, w2[:, ::1], b2
    got, want = expert_gate_fwd(*views, False), reference.expert_gate(*double((experts, w1, b1, w2, b2)))
    low = reference.expert_gate(experts, w1, b1, w2, b2)
    for g, w, e in zip(got, low, want, strict=True):
        assert_as_good_as(g, w, e)
    torch.testing.assert_close(got[1].sum(-1), torch.ones(2, device=device))


def test_nan_stays_nan(device):
    inputs = make((2, 3, 4, 16), torch.float32, device)
    inputs[0][0, 1, 2, 3] = float("nan")
    out, gates = expert_gate_fwd(*inputs, False)
    assert out[0].isnan().all() and gates[0].isnan().all() and not out[1].isnan().any()


def test_op_gradient_and_compilation(device):
    inputs = [t.requires_grad_() for t in make((2, 3, 2, 5), torch.float64, device)]
    for pooled in (False, True):
        assert torch.autograd.gradcheck(lambda *t, pooled=pooled: nk.expert_gate(*t, pooled=pooled), inputs)
    plain = [t.detach().float() for t in inputs]
    torch.library.opcheck(torch.ops.nanoemox.expert_gate.default, (*plain, True))
    compiled = torch.compile(nk.expert_gate, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*plain), nk.expert_gate(*plain))


def test_definition_is_the_models_gate(device):
    from nanoemox.config import FusionConfig
    from nanoemox.modules.fusion import MultiscaleFusion

    fusion = MultiscaleFusion(FusionConfig(hidden_size=16, heads=2), 3, 8, 8, 4).eval()
    experts = torch.randn(2, 3, 5, 16)
    with torch.inference_mode():
        gates = fusion.gate(experts)
        out, ours = nk.expert_gate(
            experts,
            fusion.gate_mlp[0].weight,
            fusion.gate_mlp[0].bias,
            fusion.gate_mlp[3].weight,
            fusion.gate_mlp[3].bias,
        )
        torch.testing.assert_close(ours, gates)
        torch.testing.assert_close(out, fusion.fuse(experts, gates))


def test_wrong_shapes_are_told(device):
    experts, w1, b1, w2, b2 = make((2, 3, 4, 8), torch.float32, device)
    with pytest.raises(ValueError, match=r"w1 \[8, 24\] .* got \[8, 8\]"):
        nk.expert_gate(experts, w1[:, :8], b1, w2, b2)
    with pytest.raises(ValueError, match=r"got \[3, 4, 8\]"):
        nk.expert_gate(experts[0], w1, b1, w2, b2)
    with pytest.raises(ValueError, match="at least 1"):
        nk.expert_gate(experts[:, :, :0], w1, b1, w2, b2)


def test_cost():
    moved, flops = reference.cost(1, 3, 8, 512)
    assert moved > 2 * 3 * 512 * 512 and flops > 2 * 512 * 1536
