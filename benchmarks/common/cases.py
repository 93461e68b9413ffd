"""The fused ops as benchmarks call them: inputs of a size, and implementations as functions of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import nanoemox_kernels as nk
from nanoemox_kernels.ops.activation import reference as acts
from nanoemox_kernels.ops.attn import reference as attns
from nanoemox_kernels.ops.expert_fusion import reference as fusion
from nanoemox_kernels.ops.expert_gate import reference as gate
from nanoemox_kernels.ops.feature_taps import reference as taps
from nanoemox_kernels.ops.norm_act import reference as norms
from nanoemox_kernels.ops.temporal_xattn import reference as xattn
from nanoemox_kernels.ops.time_conv import reference as conv
from nanoemox_kernels.ops.window_attn import reference as windows

Function = Callable[..., tuple[Tensor, ...]]


@dataclass
class Case:
    """One op at one size. The first implementation is ours, the second the definition in eager PyTorch.

    Each takes `inputs` and returns what it wrote, inputs that it updates in place included.
    """

    name: str
    inputs: list[Tensor]
    functions: dict[str, Function]
    moved: int  # bytes at least
    flops: int


@dataclass(frozen=True)
class Sizes:
    """The published model's by default (architecture sections 2, 7 and 8)."""

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


SMALL = Sizes(
    T=5,
    D=96,
    H=72,
    W=40,
    C=40,
    M=3,
    P=56,
    vision=17,
    audio=9,
    stage=(9, 8, 3),
    map=(530, 12),
    group=20,
    front=24,
)  # masks of every kind


def compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False, fullgraph=True)  # a break would make the rival slow unseen


def cases(B: int, dtype: torch.dtype, sizes: Sizes | None = None, device: str = "cuda") -> Iterator[Case]:
    """Every op on B clips. Numbers are drawn on the CPU, so that few kernels but the ops' own run on the GPU."""
    s = sizes or Sizes()
    random = torch.Generator().manual_seed(0)

    def tensor(*size: int) -> Tensor:
        return (torch.randn(size, generator=random) * size[-1] ** -0.5).to(dtype).to(device)

    for make in (_gate, _fusion, _xattn, _taps, _windows, _attention, _conv, _up, _norms, _activations):
        yield from make(B, s, tensor)


def _gate(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    E, H = s.E, s.H
    inputs = [tensor(B, E, s.T, H), tensor(H, E * H), tensor(H), tensor(E, H), tensor(E)]
    fused = compiled(gate.expert_gate)
    for pooled in (True, False):
        functions = {
            "ours": lambda *t, pooled=pooled: nk.expert_gate(*t, pooled=pooled),
            "eager": lambda *t, pooled=pooled: gate.expert_gate(*t, pooled=pooled),
            "compiled": lambda *t, pooled=pooled: fused(*t, pooled=pooled),
        }
        cost = gate.cost(B, E, s.T, H, pooled=pooled, itemsize=inputs[0].itemsize)
        yield Case("expert_gate" + " pooled" * pooled, inputs, functions, *cost)


def _fusion(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    E, D, H, W = s.E, s.D, s.H, s.W
    raw = nk.ExpertFusionWeights(
        tensor(H, D), tensor(H), tensor(H, D), tensor(H), tensor(E, 3 * H, H), tensor(E, 3 * H), tensor(E, H, H),
        tensor(E, H), tensor(E, H), tensor(E, H), tensor(E, H, H), tensor(E, H), tensor(E, H, H), tensor(E, H),
        tensor(H, E * H), tensor(H), tensor(E, H), tensor(E), tensor(W, H), tensor(W),
    )  # fmt: skip
    folded = nk.fold_expert_fusion(raw)
    fused, fused_folded = compiled(fusion.expert_fusion), compiled(fusion.expert_fusion_folded)
    inputs = [tensor(B, s.T, E * D), tensor(B, s.T, E * D)]
    functions = {
        "ours": lambda a, v: nk.expert_fusion(a, v, folded)[:2],
        "eager": lambda a, v: fusion.expert_fusion(a, v, raw)[:2],
        "compiled": lambda a, v: fused(a, v, raw)[:2],
        "compiled folded": lambda a, v: fused_folded(a, v, folded)[:2],
    }
    cost = fusion.cost(B, s.T, s.T, E, D, D, H, W, itemsize=inputs[0].itemsize)
    yield Case("expert_fusion", inputs, functions, *cost)


def _xattn(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    C, M, P, W, heads = s.C, s.M, s.P, s.W, 4
    raw = nk.TemporalXattnWeights(
        tensor(M, C), tensor(3 * C, C), tensor(3 * C), tensor(C, C), tensor(C), tensor(P, C), tensor(P), tensor(W, P),
        tensor(W),
    )  # fmt: skip
    folded = nk.fold_temporal_xattn(raw, heads)
    fused, fused_folded = compiled(xattn.temporal_xattn), compiled(xattn.temporal_xattn_folded)
    functions = {
        "ours": lambda x: nk.temporal_xattn(x, folded, need_attention=True),
        "eager": lambda x: xattn.temporal_xattn(x, raw, heads),
        "compiled": lambda x: fused(x, raw, heads),
        "compiled folded": lambda x: fused_folded(x, folded),
    }
    inputs = [tensor(B, s.T, C)]
    cost = xattn.cost(B, s.T, C, M, heads, P, W, itemsize=inputs[0].itemsize)
    yield Case("temporal_xattn", inputs, functions, *cost)


def _taps(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    """The seam between two layers of an encoder, the first of them tapped; and the pooling by itself."""
    R, D = B * s.T, s.D
    fused, fused_pool = compiled(taps.feature_taps_), compiled(taps.tap_pool_)
    for encoder, N, mean in (("vision", s.vision, False), ("audio", s.audio, True)):
        select = "mean" if mean else "cls"

        def ours(hidden, update, weight, bias, out, select=select):
            y = nk.feature_taps_(hidden, update, weight, bias, taps=[nk.Tap(out, select=select)])
            return y, hidden, out

        def definition(function, mean=mean):
            return lambda hidden, update, weight, bias, out: (
                function(hidden, update, weight, bias, 1e-5, [out], [1.0], [False], [mean]), hidden, out,
            )  # fmt: skip

        inputs = [tensor(R, N, D), tensor(R, N, D), tensor(D), tensor(D)]
        inputs.append(torch.zeros(R, D).to(inputs[0].device))
        cost = taps.cost(R, N, D, 1, itemsize=inputs[0].itemsize)
        functions = {"ours": ours, "eager": definition(taps.feature_taps_), "compiled": definition(fused)}
        yield Case(f"feature_taps_ {encoder}", inputs, functions, *cost)
    for name, select, N, D in (
        ("mean", "mean", s.audio, s.D), ("cls", "cls", s.audio, s.D), ("mean of a map", "mean", *s.map),
    ):  # fmt: skip
        mean = select == "mean"
        rows = N if mean else 1
        hidden = tensor(R, N, D)
        inputs = [torch.zeros(R, D).to(hidden.device), hidden]
        functions = {
            "ours": lambda out, hidden, select=select: (nk.tap_pool_(out, hidden, 0.25, select), out)[1:],
            "eager": lambda out, hidden, mean=mean: (taps.tap_pool_(out, hidden, 0.25, mean), out)[1:],
            "compiled": lambda out, hidden, mean=mean: (fused_pool(out, hidden, 0.25, mean), out)[1:],
        }
        moved = R * D * (rows * hidden.itemsize + 8)  # hidden read; the fp32 slice read and written
        yield Case(f"tap_pool_ {name}", inputs, functions, moved, R * D * rows)


def _windows(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    """A shifted layer; PyTorch's ways run the definition, which rolls and cuts the map."""
    (height, width, heads), n, window, shift = s.stage, B * s.T, 7, 3
    C = 32 * heads
    inputs = [tensor(n, height * width, 3 * C), tensor(heads, 64, 64), tensor(3 * C)]
    fused = compiled(windows.window_attn)
    functions = {
        "ours": lambda q, b, p: (nk.window_attn(q, b, height, width, window=window, shift=shift, padding=p),),
        "eager": lambda q, b, p: (windows.window_attn(q, b, p, height, width, window, shift),),
        "compiled": lambda q, b, p: (fused(q, b, p, height, width, window, shift),),
    }
    cost = windows.cost(n, height, width, C, heads, window, itemsize=inputs[0].itemsize)
    yield Case("window_attn", inputs, functions, *cost)


def _attention(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    """A layer of CLIP and one of HuBERT; eager is PyTorch's own attention, compiled the definition."""
    d = 64 if s.D % 64 == 0 else s.D // 3
    fused = compiled(attns.attn)
    for name, T in (("vision", s.vision), ("audio", s.audio)):
        n, H = B * s.T, s.D // d
        inputs = [tensor(n, T, 3 * s.D)]

        def heads(x: Tensor, H: int = H) -> Tensor:
            return x.unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)

        functions = {
            "ours": lambda x, heads=heads: (nk.attn(*heads(x)),),
            "eager": lambda x, heads=heads: (
                torch.nn.functional.scaled_dot_product_attention(*heads(x)).transpose(1, 2).flatten(2),
            ),
            "compiled": lambda x, heads=heads: (fused(*heads(x)),),
        }
        yield Case(f"attn {name}", inputs, functions, *attns.cost(n, H, T, T, d, itemsize=inputs[0].itemsize))


def _conv(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    """HuBERT's positions and the longest layer of its front end but the first; PyTorch's ways use its convolution."""
    n, groups, k, gelu = B * s.T, 16, 128, True
    for name, T, C, G, size in (
        ("positions", s.audio, s.group, groups, (k, 1, k // 2, 1, gelu)),
        ("front end", 64 * s.audio + 63, s.front, 1, (3, 2, 0, 0, not gelu)),
    ):
        kernel, stride, padding, trim, act = size
        if B > 8 and name == "front end":  # 27 GB for the definition's copies
            continue
        inputs = [tensor(n, T, C * G), tensor(C * G, kernel * C), tensor(C * G)]
        fused = compiled(_convolve)
        functions = {
            "ours": lambda x, w, b, z=size: (
                nk.time_conv(x, w, b, kernel=z[0], stride=z[1], padding=z[2], trim=z[3], gelu=z[4]),
            ),
            "eager": lambda x, w, b, z=size: (_convolve(x, w, b, *z),),
            "compiled": lambda x, w, b, z=size, fused=fused: (fused(x, w, b, *z),),
        }
        cost = conv.cost(n, T, C * G, C * G, kernel, stride, G, padding, trim, itemsize=inputs[0].itemsize)
        yield Case(f"time_conv {name}", inputs, functions, *cost)


def _up(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    """The first half of Swin's MLP as time_conv with one tap, in its first two stages; later ones go to cuBLAS."""
    (places, width), fused = s.map, compiled(_linear_gelu)
    for name, rows, C in (("a wide map", places, width), ("a map", places // 4, 2 * width)):
        inputs = [tensor(B * s.T, rows, C), tensor(4 * C, C), tensor(4 * C)]
        functions = {
            "ours": lambda *t: (nk.time_conv(*t, kernel=1, gelu=True),),
            "eager": lambda *t: (_linear_gelu(*t),),
            "compiled": lambda *t: (fused(*t),),
        }
        cost = conv.cost(B * s.T, rows, C, 4 * C, 1, 1, 1, itemsize=inputs[0].itemsize)
        yield Case(f"time_conv MLP of {name}", inputs, functions, *cost)


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))


def _norms(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    """HuBERT's first layer, and what follows the product of its second; PyTorch's ways in the dtype of x."""
    n, D, samples, size = B * s.T, s.front, 320 * s.audio + 320, (5, 1e-5, True)  # stride, eps, gelu
    if B > 8:  # as above
        return
    inputs = [tensor(n, samples), tensor(D, 10), tensor(D), 1 + tensor(D), tensor(D)]
    fused = compiled(_first_layer)
    functions = {
        "ours": lambda *t: (nk.conv_norm_act(*t, stride=size[0], gelu=True),),
        "eager": lambda *t: (_first_layer(*t, *size),),
        "compiled": lambda *t: (fused(*t, *size),),
    }
    cost = norms.conv_cost(n, samples, D, 10, 5, itemsize=inputs[0].itemsize)
    yield Case("conv_norm_act", inputs, functions, *cost)
    rows = n * (32 * s.audio + 31)
    inputs = [tensor(rows, D), 1 + tensor(D), tensor(D)]
    fused_norm = compiled(_norm_gelu)
    functions = {
        "ours": lambda *t: (nk.norm_act(*t, gelu=True),),
        "eager": lambda *t: (_norm_gelu(*t),),
        "compiled": lambda *t: (fused_norm(*t),),
    }
    yield Case("norm_act gelu", inputs, functions, *norms.cost(rows, D, itemsize=inputs[0].itemsize))


def _activations(B: int, s: Sizes, tensor: Callable[..., Tensor]) -> Iterator[Case]:
    for name, ours, definition, rows in (
        ("gelu_", nk.gelu_, acts.gelu_, s.audio), ("quick_gelu_", nk.quick_gelu_, acts.quick_gelu_, s.vision)
    ):  # fmt: skip
        x, fused = tensor(B * s.T, rows, 4 * s.D), compiled(definition)
        functions = {
            "ours": lambda x, ours=ours: (ours(x),),
            "eager": lambda x, definition=definition: (definition(x), x)[1:],
            "compiled": lambda x, fused=fused: (fused(x), x)[1:],
        }
        yield Case(name, [x], functions, *acts.cost(x.numel(), itemsize=x.itemsize))


def _norm_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.gelu(torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias))


def _first_layer(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, stride: int, eps: float, gelu: bool
) -> Tensor:
    out = torch.nn.functional.conv1d(x[:, None], weight[:, None], bias, stride).transpose(1, 2)
    out = torch.nn.functional.layer_norm(out, out.shape[-1:], scale, shift, eps)
    return torch.nn.functional.gelu(out) if gelu else out


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int, trim: int, gelu: bool
) -> Tensor:
    """The definition in the dtype of x."""
    filters = weight.unflatten(1, (kernel, -1)).transpose(1, 2)
    groups = x.shape[2] // filters.shape[1]
    out = torch.nn.functional.conv1d(x.transpose(1, 2), filters, bias, stride, padding, groups=groups)
    out = out[..., : out.shape[2] - trim].transpose(1, 2)
    return torch.nn.functional.gelu(out) if gelu else out
