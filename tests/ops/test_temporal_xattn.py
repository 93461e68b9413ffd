"""temporal_xattn: the fold, kernels and gradient against the definition, odd inputs, and what is refused."""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox_kernels.ops.temporal_xattn import reference
from nanoemox_kernels.ops.temporal_xattn.kernel import temporal_xattn_fwd

# B, T, C, M, heads, P, W: the model's (narrower W), odd, one frame, empty
SHAPES = [(2, 8, 256, 4, 4, 768, 96), (3, 5, 24, 3, 2, 20, 17), (1, 1, 8, 1, 1, 8, 8), (0, 8, 16, 4, 4, 8, 8)]


def make(shape, dtype, device):
    _, _, C, M, _, P, W = shape
    sizes = [(M, C), (3 * C, C), (3 * C,), (C, C), (C,), (P, C), (P,), (W, P), (W,)]
    scales = [1, C**-0.5, 0.1, C**-0.5, 0.1, C**-0.5, 0.1, P**-0.5, 0.1]
    return nk.TemporalXattnWeights(*(random(s, dtype, device, k) for s, k in zip(sizes, scales, strict=True)))


def wide(weights):
    return type(weights)(*(t.double() for t in weights))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_folding_changes_nothing(shape):
    B, T, C, _, heads, _, _ = shape
    weights, x = make(shape, torch.float64, "cpu"), torch.randn(B, T, C, dtype=torch.float64)
    folded = nk.fold_temporal_xattn(weights, heads)
    for a, b in zip(
        nk.temporal_xattn(x, weights, need_attention=True, heads=heads),
        nk.temporal_xattn(x, folded, need_attention=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_the_definition(shape, dtype, device):
    B, T, C, _, heads, _, _ = shape
    folded = nk.fold_temporal_xattn(make(shape, dtype, device), heads)
    x = random((B, T, C), dtype, device)
    got, low = temporal_xattn_fwd(x, folded), reference.temporal_xattn_folded(x, folded)
    exact = reference.temporal_xattn_folded(x.double(), wide(folded))
    for g, w, e in zip(got, low, exact, strict=True):
        assert_as_good_as(g, w, e)


def test_strided_inputs_and_extreme_values(device):
    shape = (2, 6, 32, 4, 4, 24, 16)
    folded = nk.fold_temporal_xattn(make(shape, torch.float32, device), 4)
    x = random((6, 2, 32), torch.float32, device, 1e3).transpose(0, 1)
    got, low = temporal_xattn_fwd(x, folded), reference.temporal_xattn_folded(x, folded)
    for g, w, e in zip(got, low, reference.temporal_xattn_folded(x.double(), wide(folded)), strict=True):
        assert_as_good_as(g, w, e)
    torch.testing.assert_close(got[1].sum(-1), torch.ones(2, 4, 4, device=device))


def test_op_gradient_and_compilation(device):
    folded = nk.fold_temporal_xattn(make((2, 3, 8, 2, 2, 6, 5), torch.float64, device), 2)
    x = torch.randn(2, 3, 8, dtype=torch.float64, device=device, requires_grad=True)
    leaves = [t.detach().requires_grad_() for t in folded]
    assert torch.autograd.gradcheck(
        lambda x, *w: nk.temporal_xattn(x, nk.FoldedTemporalXattn(*w), need_attention=True), (x, *leaves)
    )
    plain, args = x.detach().float(), [t.detach().float() for t in folded]
    torch.library.opcheck(torch.ops.nanoemox.temporal_xattn.default, (plain, *args))
    compiled = torch.compile(
        lambda x: nk.temporal_xattn(x, nk.FoldedTemporalXattn(*args))[0], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(plain), nk.temporal_xattn(plain, nk.FoldedTemporalXattn(*args))[0])


def test_definition_is_the_models_head():
    from nanoemox.config import FaceConfig
    from nanoemox.modules.face import FaceHead

    head = FaceHead(FaceConfig(feature_size=32, projector_size=24), 16).eval()
    names = [
        "query",
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
    ]
    names += [f"project.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")]
    weights = nk.TemporalXattnWeights(*(head.state_dict()[name] for name in names))
    x = torch.randn(2, 8, 32)
    with torch.inference_mode():
        for a, b in zip(nk.temporal_xattn(x, weights, need_attention=True), head(x), strict=True):
            torch.testing.assert_close(a, b)


def test_attention_on_request_and_wrong_shapes():
    weights = make((1, 2, 8, 2, 2, 6, 5), torch.float32, "cpu")
    assert nk.temporal_xattn(torch.randn(1, 2, 8), weights, heads=2)[1] is None
    with pytest.raises(ValueError, match=r"got \[2, 8\]"):
        nk.temporal_xattn(torch.randn(2, 8), weights)
    with pytest.raises(ValueError, match="query"):
        nk.temporal_xattn(torch.randn(1, 2, 12), weights)
    with pytest.raises(ValueError, match="3 heads"):
        nk.temporal_xattn(torch.randn(1, 2, 8), weights, heads=3)
    with pytest.raises(ValueError, match="scores"):
        nk.temporal_xattn(torch.randn(1, 2, 12), nk.fold_temporal_xattn(weights, 2))


def test_cost():
    moved, flops = reference.cost(1, 8, 256, 4, 4, 768, 1536)
    assert moved > 2 * (768 * 1024 + 1536 * 768) and flops > 2 * 4 * (768 * 1024 + 1536 * 768)
