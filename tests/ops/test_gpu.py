"""What only a GPU can show of the ops: graphs, streams, devices, torch.compile, and the machine code for the
target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from support import DTYPES, random

import nanoemox_kernels as nk
from nanoemox_kernels import Tap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# The model's sizes on two clips, and odd ones: B clips, E experts, T frames, D encoder, H fusion and W output
# width, C face features, M queries, P projector, N rows of a hidden state.
MODEL = SimpleNamespace(B=2, E=3, T=8, D=1024, H=512, W=1536, C=256, M=4, P=768, N=257)
ODD = SimpleNamespace(B=3, E=2, T=5, D=40, H=24, W=17, C=24, M=3, P=20, N=9)
HEADS = 8  # of the fusion; those of the queries are four


@dataclass
class Op:
    """make(sizes, dtype, device) -> inputs; call(*inputs) -> what it wrote, updated inputs included."""

    make: Callable
    call: Callable


def weight(dtype, device):
    return lambda *size: random(size, dtype, device, size[-1] ** -0.5)


def gate_inputs(s, dtype, device):
    w = weight(dtype, device)
    return [random((s.B, s.E, s.T, s.H), dtype, device), w(s.H, s.E * s.H), w(s.H), w(s.E, s.H), w(s.E)]


def fusion_inputs(s, dtype, device):
    w, E, H, row, square = weight(dtype, device), s.E, s.H, (s.E, s.H), (s.E, s.H, s.H)
    raw = nk.ExpertFusionWeights(
        w(H, s.D), w(H), w(H, s.D), w(H), w(E, 3 * H, H), w(E, 3 * H), w(*square), w(*row), 1 + w(*row),
        w(*row),
        w(*square), w(*row), w(*square), w(*row), w(H, E * H), w(H), w(*row), w(E), w(s.W, H), w(s.W),
    )  # fmt: skip
    audio, vision = (random((s.B, T, E * s.D), dtype, device) for T in (s.T, s.T + 1))
    return [audio, vision, *nk.fold_expert_fusion(raw)]


def fusion_call(audio, vision, *folded):
    weights = nk.FoldedExpertFusion(*folded)
    return nk.expert_fusion(audio, vision, weights, need_attention=True, heads=HEADS)


def xattn_inputs(s, dtype, device):
    w, C = weight(dtype, device), s.C
    raw = nk.TemporalXattnWeights(
        w(s.M, C), w(3 * C, C), w(3 * C), w(C, C), w(C), w(s.P, C), w(s.P), w(s.W, s.P), w(s.W)
    )
    return [random((s.B, s.T, C), dtype, device), *nk.fold_temporal_xattn(raw, 4)]


def xattn_call(x, *folded):
    return nk.temporal_xattn(x, nk.FoldedTemporalXattn(*folded), need_attention=True)


def taps_inputs(s, dtype, device):
    R, D = s.B * s.T, s.D
    hidden, update = (random((R, s.N, D), dtype, device) for _ in range(2))
    scale, shift = 1 + random((D,), dtype, device, 0.1), random((D,), dtype, device, 0.1)
    return [hidden, update, scale, shift, random((R, 3 * D), torch.float32, device)]


def taps_call(hidden, update, scale, shift, out):
    D = hidden.shape[2]
    taps = [Tap(out[:, :D]), Tap(out[:, D : 2 * D], 0.25, "norm", "mean")]
    return nk.feature_taps_(hidden, update, scale, shift, taps=taps), hidden, out


def pool_inputs(s, dtype, device):
    return [random((s.B * s.T, 3 * s.D), torch.float32, device), random((s.B * s.T, s.N, s.D), dtype, device)]


def map_inputs(s, dtype, device):
    rows = s.D if s is MODEL else 530
    return [random((s.B, 3 * s.C), torch.float32, device), random((s.B, rows, s.C), dtype, device)]


def pool_call(select):
    def call(out, hidden):
        D = hidden.shape[2]
        nk.tap_pool_(out[:, D : 2 * D], hidden, 0.25, select)
        return (out,)

    return call


def windows_inputs(s, dtype, device):
    heads, size, side = (16, 32, 14) if s is MODEL else (3, 5, 9)
    C = heads * size
    return [random((s.B, side * side, 3 * C), dtype, device), random((heads, 49, 49), dtype, device),
            random((3 * C,), dtype, device)]  # fmt: skip


def windows_call(qkv, bias, padding):
    side = int(qkv.shape[1] ** 0.5)
    return (nk.window_attn(qkv, bias, side, side, window=7, shift=3, padding=padding),)


def conv_inputs(s, dtype, device):
    w, C, kernel = weight(dtype, device), (64 if s is MODEL else 5), (128 if s is MODEL else 3)
    return [random((s.B, 99, 16 * C), dtype, device), w(16 * C, kernel * C), w(16 * C)]


def conv_call(x, weight, bias):
    kernel = weight.shape[1] * 16 // x.shape[2]
    return (
        nk.time_conv(x, weight, bias, kernel=kernel, padding=kernel // 2, trim=1 - kernel % 2, gelu=True),
    )


def front_inputs(s, dtype, device):
    w, C = weight(dtype, device), (512 if s is MODEL else 20)
    return [random((s.B, 399, C), dtype, device), w(C, 3 * C), w(C)]


def front_call(x, weight, bias):
    return (nk.time_conv(x, weight, bias, kernel=3, stride=2),)


def norm_inputs(s, dtype, device):
    D = 512 if s is MODEL else 40
    scale, shift = 1 + random((D,), dtype, device, 0.1), random((D,), dtype, device, 0.1)
    return [random((s.B, 199, D), dtype, device), scale, shift]


def norm_call(gelu):
    return lambda x, scale, shift: (nk.norm_act(x, scale, shift, gelu=gelu),)


def wave_inputs(s, dtype, device):
    _, scale, shift = norm_inputs(s, dtype, device)
    D = len(scale)
    return [
        random((s.B, 1999), dtype, device),
        weight(dtype, device)(D, 10),
        weight(dtype, device)(D),
        scale,
        shift,
    ]


def wave_call(*tensors):
    return (nk.conv_norm_act(*tensors, stride=5, gelu=True),)


def up_inputs(s, dtype, device):
    w, C = weight(dtype, device), (512 if s is MODEL else 20)
    return [random((s.B, 196, C), dtype, device), w(4 * C, C), w(4 * C)]


def attn_inputs(s, dtype, device):
    heads, size = (16, 64) if s is MODEL else (3, 5)
    return [random((s.B, s.N, 3 * heads * size), dtype, device)]


def attn_call(rows):
    heads = 16 if rows.shape[2] % 64 == 0 else 3
    return (nk.attn(*rows.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)),)


OPS = {
    "attn": Op(attn_inputs, attn_call),
    "expert_gate": Op(gate_inputs, nk.expert_gate),
    "expert_gate pooled": Op(gate_inputs, lambda *t: nk.expert_gate(*t, pooled=True)),
    "expert_fusion": Op(fusion_inputs, fusion_call),
    "temporal_xattn": Op(xattn_inputs, xattn_call),
    "feature_taps_": Op(taps_inputs, taps_call),
    "tap_pool_ mean": Op(pool_inputs, pool_call("mean")),
    "tap_pool_ mean of a map": Op(map_inputs, pool_call("mean")),
    "tap_pool_ cls": Op(pool_inputs, pool_call("cls")),
    "window_attn": Op(windows_inputs, windows_call),
    "time_conv positions": Op(conv_inputs, conv_call),
    "time_conv front end": Op(front_inputs, front_call),
    "time_conv one tap": Op(up_inputs, lambda *t: (nk.time_conv(*t, kernel=1, gelu=True),)),
    "norm_act": Op(norm_inputs, norm_call(False)),
    "norm_act gelu": Op(norm_inputs, norm_call(True)),
    "quick_gelu_": Op(lambda s, *kind: [random((s.B, s.N, s.D), *kind, 4.0)], lambda x: (nk.quick_gelu_(x),)),
    "gelu_": Op(lambda s, *kind: [random((s.B, s.N, s.D), *kind, 4.0)], lambda x: (nk.gelu_(x),)),
    "conv_norm_act": Op(wave_inputs, wave_call),
}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def copies(tensors):
    return [t.clone() for t in tensors]


def assert_same(got, want):
    """Bit by bit: the same kernels ran on the same numbers."""
    for g, w in zip(got, want, strict=True):
        assert torch.isfinite(g).all() and torch.equal(g, w)


def test_graph_replays_on_other_inputs(op, device):
    buffers, other = (op.make(MODEL, torch.bfloat16, device) for _ in range(2))
    op.call(*copies(buffers))  # compiles, which a capture must not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op.call(*buffers)
    for static, new in zip(buffers, other, strict=True):
        static.copy_(new)
    graph.replay()
    assert_same(out, op.call(*copies(other)))


def test_launches_on_the_current_stream(op, device):
    values = op.make(MODEL, torch.bfloat16, device)
    want, buffers = op.call(*copies(values)), [torch.zeros_like(t) for t in values]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what is launched on another stream reads zeros
        for static, value in zip(buffers, values, strict=True):
            static.copy_(value)
        got = op.call(*buffers)
    stream.synchronize()
    assert_same(got, want)


def test_compiled_by_inductor_without_a_break(op, device):
    values = op.make(MODEL, torch.bfloat16, device)
    torch.compiler.reset()
    compiled = torch.compile(op.call, fullgraph=True)
    assert_same(compiled(*copies(values)), op.call(*copies(values)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_device_that_is_not_the_current_one(op):
    values = op.make(MODEL, torch.bfloat16, "cuda:0")
    got = op.call(*(t.to("cuda:1") for t in values))
    assert all(t.device.index == 1 for t in got)
    assert_same([t.to("cuda:0") for t in got], op.call(*values))


def close_to(got, want):
    """Sums in another order: an ulp of the peak in 16 bits, 128 in fp32."""
    limit = torch.finfo(want.dtype).eps * (128 if want.dtype == torch.float32 else 1)
    known = ~want.isnan()  # what nobody writes is NaN, as it was
    assert torch.equal(got.isnan(), want.isnan())
    peak = want[known].abs().max() if known.any() else 0
    assert ((got - want)[known].double().abs() <= limit * peak).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [MODEL, ODD], ids=["model", "odd"])
def test_machine_code_for_sm_89(op, sizes, dtype, device, monkeypatch):
    """Each launch's kernel, compiled for the RTX 4090, runs on copies too and leaves the same numbers."""
    from machine_code import run_for
    from triton.runtime.jit import JITFunction

    launched, launch = [], JITFunction.run

    def run(kernel, *args, grid, warmup, **named):
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | named
        twins = {}
        for value in arguments.values():
            if isinstance(value, torch.Tensor):  # one that is given twice stays one
                twin = torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=value.device
                )
                twins.setdefault((value.data_ptr(), value.shape), twin.copy_(value))
        result = launch(kernel, *args, grid=grid, warmup=warmup, **named)

        def twin_of(value):
            return twins[value.data_ptr(), value.shape] if isinstance(value, torch.Tensor) else value

        run_for(kernel, grid, {name: twin_of(value) for name, value in arguments.items()}, 89)
        for value in arguments.values():
            if isinstance(value, torch.Tensor):
                close_to(twin_of(value), value)
        launched.append(kernel.__name__)
        return result

    values = op.make(sizes, dtype, device)
    monkeypatch.setattr(JITFunction, "run", run)
    op.call(*values)
    assert launched
