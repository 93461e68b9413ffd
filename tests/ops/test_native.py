"""The C++ kernels: every op at every instruction set of this CPU, against its definition."""

import pytest
import torch
from support import assert_as_good_as, double, random

import nanoemox_kernels as nk
from nanoemox_kernels import _native
from nanoemox_kernels.ops.attn.native import attention
from nanoemox_kernels.ops.expert_fusion import reference as fusion_reference
from nanoemox_kernels.ops.expert_gate import reference as gate_reference
from nanoemox_kernels.ops.feature_taps import reference as taps_reference
from nanoemox_kernels.ops.temporal_xattn import reference as xattn_reference

LEVELS = _native.isa_levels() if _native.library is not None else []
needs_library = pytest.mark.skipif(_native.library is None, reason=f"no C++ kernels: {_native.why_not}")


@pytest.fixture(params=LEVELS or [None])
def level(request):
    if request.param is None:
        pytest.skip(f"no C++ kernels: {_native.why_not}")
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


def compare(got, low, exact):
    for triple in zip(got, low, exact, strict=True):
        assert_as_good_as(*triple)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 3, 8, 512), (2, 3, 7, 33), (5, 2, 3, 70), (0, 3, 8, 16), (17, 4, 2, 130)], ids=str
)
def test_expert_gate(level, dtype, shape, pooled):
    B, E, T, H = shape
    sizes = [(shape, 1), ((H, E * H), (E * H) ** -0.5), ((H,), 1), ((E, H), H**-0.5), ((E,), 1)]
    args = [random(size, dtype, "cpu", scale) for size, scale in sizes]
    low, exact = (gate_reference.expert_gate(*a, pooled=pooled) for a in (args, double(args)))
    compare(nk.expert_gate(*args, pooled=pooled), low, exact)
    strided = args[0].transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(
        nk.expert_gate(strided, *args[1:], pooled=pooled), nk.expert_gate(*args, pooled=pooled)
    )


def fusion_weights(dtype, E, Da, Dv, H, W):
    def matrix(*size):
        return random(size, dtype, "cpu", size[-1] ** -0.5)

    def vector(*size):
        return random(size, torch.float32, "cpu")

    return nk.FoldedExpertFusion(
        matrix(H, Da), vector(H), matrix(H, Dv), matrix(E, 3 * H, H), vector(E, H), matrix(E, H, H),
        vector(E, H), vector(E, H), vector(E, H), matrix(E, H, H), vector(E, H), matrix(E, H, H),
        vector(E, H), matrix(H, E * H), vector(H), matrix(E, H), vector(E), matrix(W, H), vector(W),
    )  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 8, 3, 1024, 1024, 512, 8, 1536), (2, 5, 3, 2, 12, 10, 12, 3, 70),
     (17, 8, 9, 3, 70, 30, 36, 2, 40), (0, 2, 2, 2, 4, 4, 4, 2, 3), (2, 1, 100, 3, 33, 17, 64, 4, 50)],
    ids=str,
)  # fmt: skip
def test_expert_fusion(level, dtype, shape):
    B, Ta, Tv, E, Da, Dv, H, heads, W = shape
    draws = []
    for _ in range(4):  # several draws, because PyTorch's own error of a few gates may be small by chance
        weights = fusion_weights(dtype, E, Da, Dv, H, W)
        audio, vision = random((B, Ta, E * Da), dtype, "cpu"), random((B, Tv, E * Dv), dtype, "cpu")
        low = fusion_reference.expert_fusion_folded(audio, vision, weights, heads)
        exact = fusion_reference.expert_fusion_folded(
            audio.double(), vision.double(), nk.FoldedExpertFusion(*double(weights)), heads
        )
        draws.append((nk.expert_fusion(audio, vision, weights, heads=heads, need_attention=True), low, exact))
    compare(*([torch.stack(part) for part in zip(*outs, strict=True)] for outs in zip(*draws, strict=True)))


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 256, 4, 4, 768, 1536), (2, 3, 20, 3, 2, 17, 11), (9, 13, 64, 4, 8, 70, 130),
     (0, 3, 4, 2, 2, 3, 3), (2, 200, 40, 3, 2, 50, 60)],
    ids=str,
)  # fmt: skip
def test_temporal_xattn(level, dtype, shape):
    B, T, C, M, heads, P, W = shape
    weights = nk.FoldedTemporalXattn(
        random((heads, M, C), dtype, "cpu", C**-0.5),
        random((P, heads, C), dtype, "cpu", (heads * C) ** -0.5),
        random((P,), torch.float32, "cpu"), random((W, P), dtype, "cpu", P**-0.5),
        random((W,), torch.float32, "cpu"),
    )  # fmt: skip
    x = random((B, 2 * T, C), dtype, "cpu")[:, ::2]
    low = xattn_reference.temporal_xattn_folded(x, weights)
    exact = xattn_reference.temporal_xattn_folded(x.double(), nk.FoldedTemporalXattn(*double(weights)))
    compare(nk.temporal_xattn(x, weights, need_attention=True), low, exact)


@pytest.mark.parametrize("inputs", ["update norm bias", "update norm", "norm bias", "update", ""])
@pytest.mark.parametrize("shape", [(8, 99, 1024), (2, 3, 33), (1, 1, 1), (0, 3, 5), (3, 9, 130)], ids=str)
def test_feature_taps(level, dtype, shape, inputs):
    hidden, update = random(shape, dtype, "cpu"), random(shape, dtype, "cpu") if "update" in inputs else None
    weight = random(shape[-1:], dtype, "cpu") if "norm" in inputs else None
    bias = random(shape[-1:], dtype, "cpu") if "bias" in inputs else None
    source = "norm" if "norm" in inputs else "residual"

    def run(cast, op):
        h, out_dtype = cast(hidden.clone()), torch.float64 if cast is widen else torch.float32
        outs = torch.zeros(2, shape[0], shape[2], dtype=out_dtype)
        y = op(h, cast(update), cast(weight), cast(bias), outs)
        return y, h, outs

    def widen(tensor):
        return None if tensor is None else tensor.double()

    def ours(h, u, w, b, outs):
        return nk.feature_taps_(h, u, w, b, taps=[nk.Tap(outs[0]), nk.Tap(outs[1], 0.25, source, "mean")])

    def reference(h, u, w, b, outs):
        return taps_reference.feature_taps_(
            h, u, w, b, 1e-5, list(outs), [1.0, 0.25], [False, source == "norm"], [False, True]
        )

    compare(run(lambda t: t, ours), run(lambda t: t, reference), run(widen, reference))


def reference_attention(q, k, v, bias=None):
    bias = None if bias is None else bias.expand(-1, *q.shape[1:3], -1).repeat(len(q) // len(bias), 1, 1, 1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@pytest.mark.parametrize(
    "shape",  # n, H, M, T, d, items of the bias
    [(2, 16, 257, 257, 64, 0), (4, 4, 49, 49, 32, 2), (3, 2, 1, 33, 80, 1), (2, 3, 13, 130, 128, 1),
     (2, 1, 6, 5, 7, 2), (1, 1, 1, 1, 1, 0), (0, 2, 3, 4, 8, 0), (2, 3, 65, 64, 96, 0),
     (1, 2, 12, 200, 33, 1)],
    ids=str,
)  # fmt: skip
def test_attention(level, dtype, shape):
    n, H, M, T, d, w = shape
    q, k, v = (random((n, count, 3, H, d), dtype, "cpu")[:, :, 0].transpose(1, 2) for count in (M, T, T))
    bias = random((w, H, M, T), dtype, "cpu", 2) if w else None
    low, exact = (
        reference_attention(q, k, v, bias),
        reference_attention(*double((q, k, v)), None if bias is None else bias.double()),
    )
    got = attention(q, k, v, bias)
    assert_as_good_as(got, low, exact)
    buffer = torch.full((n, H, M, 2 * d), 7, dtype=dtype)
    assert attention(q, k, v, bias, out=buffer[..., :d]) is not got and torch.equal(buffer[..., :d], got)
    assert (buffer[..., d:] == 7).all()


def test_attention_of_shared_keys_and_a_mask(level, dtype):
    """As the prefill calls it: groups of two heads share keys; a query attends to itself and earlier keys."""
    q, k, v = (random((3, heads, count, 64), dtype, "cpu") for heads, count in ((2, 9), (1, 14), (1, 14)))
    mask = torch.full((1, 1, 9, 14), -torch.inf, dtype=dtype).triu(6)
    got = attention(q, k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1), causal_offset=6)
    expanded = [t.expand(-1, 2, -1, -1) for t in (k, v)]
    assert_as_good_as(
        got, reference_attention(q, *expanded, mask), reference_attention(*double((q, *expanded, mask)))
    )
    masked = attention(q, k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1), mask)
    torch.testing.assert_close(got, masked, rtol=0.02, atol=1e-5 if dtype == torch.float32 else 0.02)
    q, k, v = (random((1, 2, 150, 80), dtype, "cpu") for _ in range(3))
    mask = torch.full((1, 1, 150, 150), -torch.inf, dtype=dtype).triu(1)
    assert_as_good_as(
        attention(q, k, v, causal_offset=1),
        reference_attention(q, k, v, mask),
        reference_attention(*double((q, k, v, mask))),
    )
    q, k, v = (random((3, heads, count, 64), dtype, "cpu") for heads, count in ((2, 9), (1, 14), (1, 14)))
    got = attention(q, k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1), causal_offset=6)
    assert torch.equal(
        got[:, :, :1],
        attention(q[:, :, :1], k[:, :, :6].expand(-1, 2, -1, -1), v[:, :, :6].expand(-1, 2, -1, -1)),
    )
    k[1, 0, 3, 5] = torch.nan
    got = attention(q, k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1))
    assert got[1].isnan().all() and got[::2].isfinite().all()
    large = attention(1e3 * q, 1e3 * k[:1].expand(3, 2, -1, -1), v.expand(-1, 2, -1, -1))
    assert large.isfinite().all()


@needs_library
def test_attention_rejects_unsupported_tensors():
    q = torch.randn(2, 3, 4, 8)
    for tensors in (
        (q, q[:1], q),
        (q, q, q.bfloat16()),
        (q.half(), q.half(), q.half()),
        (q, q[:, :, :0], q[:, :, :0]),
    ):
        with pytest.raises(ValueError, match=r"want q \[n,H,M,d\]"):
            attention(*tensors)
    with pytest.raises(ValueError, match=r"want a bias \[w,3,4,4\]"):
        attention(q, q, q, torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="want out"):
        attention(q, q, q, out=torch.zeros(2, 3, 4, 9))


def test_extreme_values_and_nan(level, dtype):
    x, weights = torch.full((2, 4, 40), 1e4, dtype=dtype), None
    weights = nk.FoldedTemporalXattn(
        torch.ones(2, 3, 40, dtype=dtype), torch.ones(5, 2, 40, dtype=dtype) / 80, torch.zeros(5),
        torch.ones(6, 5, dtype=dtype), torch.zeros(6),
    )  # fmt: skip
    tokens, attention = nk.temporal_xattn(x, weights, need_attention=True)
    assert torch.equal(attention, torch.full_like(attention, 0.25)) and tokens.isfinite().all()
    x[1, 2, 39] = float("nan")
    tokens, attention = nk.temporal_xattn(x, weights, need_attention=True)
    assert tokens[1].isnan().all() and attention[1].isnan().all() and tokens[0].isfinite().all()
    hidden = torch.randn(1, 2, 33).to(dtype)
    hidden[0, 1, 32] = float("inf")
    y = nk.feature_taps_(hidden, None, torch.ones(33, dtype=dtype))
    assert y[0, 0].isfinite().all() and y[0, 1].isnan().any()
    fusion = fusion_weights(dtype, 3, 20, 20, 16, 9)
    audio, vision = torch.randn(2, 8, 60).to(dtype), torch.randn(2, 8, 60).to(dtype)
    audio[0, 7, 59] = float("nan")
    token, gates, _ = nk.expert_fusion(audio, vision, fusion, heads=4)
    assert token[0].isnan().all() and gates[0].isnan().all() and token[1].isfinite().all()


@needs_library
def test_other_dtypes_go_to_the_definition():
    for dtype in (torch.float16, torch.float64):
        hidden = torch.randn(2, 3, 8).to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        y = nk.feature_taps_(hidden.clone(), None, torch.ones(8, dtype=dtype))
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(hidden.to(wide), (8,)).to(dtype))
    mixed = nk.feature_taps_(hidden.float(), None, torch.ones(8, dtype=torch.bfloat16))
    torch.testing.assert_close(mixed, torch.nn.functional.layer_norm(hidden.float(), (8,)))
