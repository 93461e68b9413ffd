"""The model's shapes and every op's calls at these shapes: the one table for compiling, tuning, timing and
checking.

`cases` makes inputs for B clips and says how the model calls each op on them, what the definition computes,
what the call costs and which launch settings it asks for on a GPU. Letters are those of docs/ops/README.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .ops.activation import reference as activation_reference
from .ops.activation.op import gelu_, quick_gelu_
from .ops.attn import reference as attn_reference
from .ops.attn.op import attn
from .ops.expert_fusion import reference as fusion_reference
from .ops.expert_fusion.op import expert_fusion
from .ops.expert_gate import reference as gate_reference
from .ops.expert_gate.op import expert_gate
from .ops.feature_taps import reference as taps_reference
from .ops.feature_taps.op import Tap, feature_taps_, tap_pool_
from .ops.norm_act import reference as norm_reference
from .ops.norm_act.op import conv_norm_act, norm_act
from .ops.temporal_xattn import reference as xattn_reference
from .ops.temporal_xattn.op import temporal_xattn
from .ops.time_conv import reference as conv_reference
from .ops.time_conv.op import time_conv
from .ops.window_attn import reference as window_reference
from .ops.window_attn.op import window_attn

Function = Callable[..., tuple[Tensor | None, ...]]
Make = Callable[..., Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes that the ops see; the default is the published model (docs/architecture.md sections 2 to 8)."""

    E: int = 3  # experts
    T: int = 8  # frames and windows of a clip
    D: int = 1024  # encoder width
    H: int = 512  # fusion width
    W: int = 1536  # language-model width
    C: int = 256  # face features
    M: int = 4  # face queries
    P: int = 768  # face projector
    vision: int = 257  # rows of a frame
    audio: int = 99  # rows of a window
    stage: tuple[int, int, int] = (14, 14, 16)  # the longest of Swin's stages: height, width, heads of 32
    map: tuple[int, int] = (3136, 128)  # rows and width of the first of them
    group: int = 64  # channels of a group of the positional convolution
    front: int = 512  # channels of the front end


# Odd sizes: every mask of every kernel cuts something off.
SMALL = Sizes(
    T=5, D=96, H=72, W=40, C=40, M=3, P=56, vision=17, audio=9, stage=(9, 8, 3), map=(530, 12), group=20,
    front=24,
)  # fmt: skip


@dataclass
class Case:
    """One op as the model calls it.

    Attributes:
        name: the op and what tells this call from its others.
        inputs: tensors that change from call to call; constant weights are part of the functions.
        ours: calls the op on `inputs`; returns what it wrote, inputs that it changes in place included.
        definition: the same by the op's definition.
        moved: bytes that a call reads and writes at least.
        flops: operations of a call, 2 a multiply-add.
        kernels: entries of configs/<GPU>.json that a call with one clip at the model's sizes asks for.
        folded: the definition on folded weights, where the op has them.
        timed: whether benchmarks time it; the others are variants that are compiled, tuned and checked alone.
    """

    name: str
    inputs: list[Tensor]
    ours: Function
    definition: Function
    moved: int
    flops: int
    kernels: tuple[str, ...]
    folded: Function | None = None
    timed: bool = True


def cases(
    B: int, dtype: torch.dtype, sizes: Sizes | None = None, device: str | torch.device = "cuda"
) -> Iterator[Case]:
    """Every op on B clips.

    Args:
        dtype: of inputs and weights.
        sizes: default the published model's.
        device: "meta" makes inputs without memory, for what looks at launches alone. Numbers are drawn on the
            CPU, so that few kernels but the ops' own run on a GPU.
    """
    random = torch.Generator().manual_seed(0)

    def make(*size: int) -> Tensor:
        if str(device) == "meta":
            return torch.empty(size, dtype=dtype, device="meta")
        return (torch.randn(size, generator=random) * size[-1] ** -0.5).to(dtype).to(device)

    for of_op in _OPS:
        yield from of_op(B, sizes or Sizes(), make)


def _gate(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    E, H = s.E, s.H
    inputs = [make(B, E, s.T, H), make(H, E * H), make(H), make(E, H), make(E)]
    for pooled in (True, False):

        def ours(*tensors: Tensor, pooled: bool = pooled) -> tuple[Tensor, ...]:
            return expert_gate(*tensors, pooled=pooled)

        def definition(*tensors: Tensor, pooled: bool = pooled) -> tuple[Tensor, ...]:
            return gate_reference.expert_gate(*tensors, pooled=pooled)

        cost = gate_reference.cost(B, E, s.T, H, pooled=pooled, itemsize=inputs[0].itemsize)
        name = "expert_gate pooled" if pooled else "expert_gate"
        yield Case(name, inputs, ours, definition, *cost, kernels=("gate_hidden", "gate_combine"))


def _fusion(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    E, D, H, W = s.E, s.D, s.H, s.W
    weights = fusion_reference.ExpertFusionWeights(
        audio_proj_weight=make(H, D), audio_proj_bias=make(H),
        visual_proj_weight=make(H, D), visual_proj_bias=make(H),
        cross_attns_in_proj_weight=make(E, 3 * H, H), cross_attns_in_proj_bias=make(E, 3 * H),
        cross_attns_out_proj_weight=make(E, H, H), cross_attns_out_proj_bias=make(E, H),
        ffns_0_weight=make(E, H), ffns_0_bias=make(E, H),
        ffns_1_weight=make(E, H, H), ffns_1_bias=make(E, H),
        ffns_4_weight=make(E, H, H), ffns_4_bias=make(E, H),
        gate_mlp_0_weight=make(H, E * H), gate_mlp_0_bias=make(H),
        gate_mlp_3_weight=make(E, H), gate_mlp_3_bias=make(E),
        multi_llama_proj_weight=make(W, H), multi_llama_proj_bias=make(W),
    )  # fmt: skip
    folded = fusion_reference.fold_expert_fusion(weights)
    inputs = [make(B, s.T, E * D), make(B, s.T, E * D)]
    cost = fusion_reference.cost(B, s.T, s.T, E, D, D, H, W, itemsize=inputs[0].itemsize)
    stages = ("project", "qkv", "attend", "hidden", "last", "gate", "token")
    yield Case(
        "expert_fusion",
        inputs,
        lambda audio, vision: expert_fusion(audio, vision, folded)[:2],
        lambda audio, vision: fusion_reference.expert_fusion(audio, vision, weights)[:2],
        *cost,
        kernels=tuple(f"fusion_{stage}" for stage in stages),
        folded=lambda audio, vision: fusion_reference.expert_fusion_folded(audio, vision, folded)[:2],
    )


def _xattn(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    C, M, P, W, heads = s.C, s.M, s.P, s.W, 4
    weights = xattn_reference.TemporalXattnWeights(
        query=make(M, C),
        attn_in_proj_weight=make(3 * C, C), attn_in_proj_bias=make(3 * C),
        attn_out_proj_weight=make(C, C), attn_out_proj_bias=make(C),
        face_proj_0_weight=make(P, C), face_proj_0_bias=make(P),
        face_proj_3_weight=make(W, P), face_proj_3_bias=make(W),
    )  # fmt: skip
    folded = xattn_reference.fold_temporal_xattn(weights, heads)
    inputs = [make(B, s.T, C)]
    cost = xattn_reference.cost(B, s.T, C, M, heads, P, W, itemsize=inputs[0].itemsize)
    yield Case(
        "temporal_xattn",
        inputs,
        lambda x: temporal_xattn(x, folded, need_attention=True),
        lambda x: xattn_reference.temporal_xattn(x, weights, heads),
        *cost,
        kernels=("xattn_context", "rows_linear"),
        folded=lambda x: xattn_reference.temporal_xattn_folded(x, folded),
    )


def _taps(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """The seam between two layers of an encoder: of CLIP and HuBERT with a tap, of Swin without."""
    R = B * s.T
    for encoder, N, D, select in (
        ("vision", s.vision, s.D, "cls"),
        ("audio", s.audio, s.D, "mean"),
        ("face", *s.map, None),
    ):
        mean = select == "mean"

        def ours(hidden, update, weight, bias, *out, select=select):
            taps = [Tap(slice_, select=select) for slice_ in out]
            y = feature_taps_(hidden, update, weight, bias, taps=taps)
            return y, hidden, *out

        def definition(hidden, update, weight, bias, *out, mean=mean):
            count = len(out)
            y = taps_reference.feature_taps_(
                hidden, update, weight, bias, 1e-5, list(out), [1.0] * count, [False] * count, [mean] * count
            )
            return y, hidden, *out

        inputs = [make(R, N, D), make(R, N, D), make(D), make(D)]
        if select is not None:
            inputs.append(torch.zeros(R, D).to(inputs[0].device))
        cost = taps_reference.cost(R, N, D, len(inputs) - 4, itemsize=inputs[0].itemsize)
        kernels = ("residual_norm", "tap_pool") if mean else ("residual_norm",)
        timed = select is not None
        yield Case(f"feature_taps_ {encoder}", inputs, ours, definition, *cost, kernels=kernels, timed=timed)


def _pools(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """The pooling by itself: of an encoder's rows, of row 0, and of the first of Swin's maps in two steps."""
    R = B * s.T
    for name, select, N, D, kernels in (
        ("mean", "mean", s.audio, s.D, ("tap_pool",)),
        ("cls", "cls", s.audio, s.D, ("tap_row",)),
        ("mean of a map", "mean", *s.map, ("tap_part", "tap_sum")),
    ):

        def ours(out: Tensor, hidden: Tensor, select: str = select) -> tuple[Tensor, ...]:
            tap_pool_(out, hidden, 0.25, select)
            return (out,)

        def definition(out: Tensor, hidden: Tensor, mean: bool = select == "mean") -> tuple[Tensor, ...]:
            taps_reference.tap_pool_(out, hidden, 0.25, mean)
            return (out,)

        hidden = make(R, N, D)
        inputs = [torch.zeros(R, D).to(hidden.device), hidden]
        rows = N if select == "mean" else 1
        moved = R * D * (rows * hidden.itemsize + 8)  # hidden is read; the fp32 slice is read and written
        yield Case(f"tap_pool_ {name}", inputs, ours, definition, moved, R * D * rows, kernels=kernels)


def _windows(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """A layer of Swin with its windows shifted, as every second one, and one without."""
    (height, width, heads), n, window = s.stage, B * s.T, 7
    C = 32 * heads
    inputs = [make(n, height * width, 3 * C), make(heads, 64, 64), make(3 * C)]
    cost = window_reference.cost(n, height, width, C, heads, window, itemsize=inputs[0].itemsize)
    for name, shift in (("window_attn", 3), ("window_attn unshifted", 0)):

        def ours(qkv: Tensor, bias: Tensor, padding: Tensor, shift: int = shift) -> tuple[Tensor, ...]:
            return (window_attn(qkv, bias, height, width, window=window, shift=shift, padding=padding),)

        def definition(qkv: Tensor, bias: Tensor, padding: Tensor, shift: int = shift) -> tuple[Tensor, ...]:
            return (window_reference.window_attn(qkv, bias, padding, height, width, window, shift),)

        yield Case(name, inputs, ours, definition, *cost, kernels=("window_attn",), timed=shift > 0)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """[n,T,3*H*d] -> q, k, v, views [n,H,T,d]."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _attention(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """A layer of CLIP and one of HuBERT, on the product that makes queries, keys and values."""
    d = 64 if s.D % 64 == 0 else s.D // 3
    n, heads = B * s.T, s.D // d
    for name, T in (("vision", s.vision), ("audio", s.audio)):
        inputs = [make(n, T, 3 * s.D)]
        yield Case(
            f"attn {name}",
            inputs,
            lambda qkv: (attn(*split_heads(qkv, heads)),),
            lambda qkv: (attn_reference.attn(*split_heads(qkv, heads)),),
            *attn_reference.cost(n, heads, T, T, d, itemsize=inputs[0].itemsize),
            kernels=("attn",),
        )


def _convolutions(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """HuBERT's positions, and the longest layer of its front end but the first."""
    n = B * s.T
    positions = {"kernel": 128, "stride": 1, "padding": 64, "trim": 1, "gelu": True}
    front_end = {"kernel": 3, "stride": 2, "padding": 0, "trim": 0, "gelu": False}
    for name, T, C, groups, options, kernel in (
        ("positions", s.audio, s.group, 16, positions, "time_conv"),
        ("front end", 64 * s.audio + 63, s.front, 1, front_end, "time_conv_wide"),
    ):
        if B > 8 and name == "front end":  # the definition's copies would take 27 GB
            continue
        inputs = [make(n, T, C * groups), make(C * groups, options["kernel"] * C), make(C * groups)]

        def ours(x, weight, bias, options=options):
            return (time_conv(x, weight, bias, **options),)

        def definition(x, weight, bias, options=options):
            return (conv_reference.time_conv(x, weight, bias, *options.values()),)

        k, stride, padding, trim, _ = options.values()
        cost = conv_reference.cost(
            n, T, C * groups, C * groups, k, stride, groups, padding, trim, itemsize=inputs[0].itemsize
        )
        yield Case(f"time_conv {name}", inputs, ours, definition, *cost, kernels=(kernel,))


def _mlps(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """The first half of Swin's MLP as a convolution of one tap, in its first two stages; later ones go to
    cuBLAS.
    """
    first_rows, first_width = s.map
    for name, rows, C in (
        ("a wide map", first_rows, first_width),
        ("a map", first_rows // 4, 2 * first_width),
    ):
        inputs = [make(B * s.T, rows, C), make(4 * C, C), make(4 * C)]
        yield Case(
            f"time_conv MLP of {name}",
            inputs,
            lambda x, weight, bias: (time_conv(x, weight, bias, kernel=1, gelu=True),),
            lambda x, weight, bias: (conv_reference.time_conv(x, weight, bias, 1, 1, 0, 0, True),),
            *conv_reference.cost(B * s.T, rows, C, 4 * C, 1, 1, 1, itemsize=inputs[0].itemsize),
            kernels=("time_conv_one",),
        )


def _norms(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    """HuBERT's first layer, the norm behind the product of its second, and the norm of Swin's patches."""
    n, D, samples = B * s.T, s.front, 320 * s.audio + 320
    if B > 8:  # the definition's copies would take tens of GB
        return
    inputs = [make(n, samples), make(D, 10), make(D), 1 + make(D), make(D)]
    yield Case(
        "conv_norm_act",
        inputs,
        lambda x, filters, bias, gain, shift: (
            conv_norm_act(x, filters, bias, gain, shift, stride=5, gelu=True),
        ),
        lambda x, filters, bias, gain, shift: (
            norm_reference.conv_norm_act(x, filters, bias, gain, shift, 5, 1e-5, True),
        ),
        *norm_reference.conv_cost(n, samples, D, 10, 5, itemsize=inputs[0].itemsize),
        kernels=("conv_norm_act",),
    )
    for name, rows, width, gelu in (
        ("norm_act gelu", n * (32 * s.audio + 31), D, True),
        ("norm_act patches", n * s.map[0], s.map[1], False),
    ):
        inputs = [make(rows, width), 1 + make(width), make(width)]

        def ours(*tensors: Tensor, gelu: bool = gelu) -> tuple[Tensor, ...]:
            return (norm_act(*tensors, gelu=gelu),)

        def definition(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = gelu) -> tuple[Tensor, ...]:
            return (norm_reference.norm_act(x, weight, bias, 1e-5, gelu),)

        yield Case(
            name,
            inputs,
            ours,
            definition,
            *norm_reference.cost(rows, width, itemsize=inputs[0].itemsize),
            kernels=("norm_act",),
            timed=gelu,
        )


def _activations(B: int, s: Sizes, make: Make) -> Iterator[Case]:
    for name, op, definition, rows in (
        ("gelu_", gelu_, activation_reference.gelu_, s.audio),
        ("quick_gelu_", quick_gelu_, activation_reference.quick_gelu_, s.vision),
    ):
        x = make(B * s.T, rows, 4 * s.D)

        def defined(x: Tensor, definition: Callable[[Tensor], None] = definition) -> tuple[Tensor, ...]:
            definition(x)
            return (x,)

        yield Case(
            name,
            [x],
            lambda x, op=op: (op(x),),
            defined,
            *activation_reference.cost(x.numel(), itemsize=x.itemsize),
            kernels=("activation",),
        )


_OPS = (
    _gate, _fusion, _xattn, _taps, _pools, _windows, _attention, _convolutions, _mlps, _norms, _activations,
)  # fmt: skip
