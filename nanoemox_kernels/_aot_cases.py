"""The launches that aot.py compiles: every kernel as the published model calls it for one clip."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ._tuning import load, rows_at_once

BF16, FP32 = torch.bfloat16, torch.float32


def tuned(kernel: str) -> dict[str, int]:
    """The settings for any GPU: the table does not depend on the one that is in this machine."""
    return load("")[kernel]


@dataclass(frozen=True)
class Case:
    """One kernel as the model calls it for one clip: a value for every argument, pointers by their dtype."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    moved: int  # bytes at least


def cases() -> Iterator[Case]:
    """Sizes of the published model at batch 1; architecture sections 2, 7 and 8."""
    from .ops.activation.kernel import _activation
    from .ops.attn.kernel import _attn, block
    from .ops.expert_fusion import kernel as fusion
    from .ops.expert_gate.kernel import _gate_combine, _gate_hidden
    from .ops.feature_taps.kernel import _residual_norm, _tap_part, _tap_pool
    from .ops.norm_act.kernel import _conv_norm_act, _norm_act
    from .ops.temporal_xattn.kernel import _rows_linear, _xattn_context
    from .ops.time_conv.kernel import _time_conv
    from .ops.window_attn.kernel import _window_attn

    E, T, H = 3, 8, 512
    yield Case(
        "gate_hidden", _gate_hidden,
        dict(hidden_ptr=FP32, experts_ptr=BF16, w1_ptr=BF16, b1_ptr=BF16, T=T, H=H, K=E * H, stride_xb=E * T * H,
             stride_xe=T * H, stride_xt=H, stride_wn=E * H, **tuned("gate_hidden")),
        2 * (E * T * H + H * E * H + H) + 4 * H,
    )  # fmt: skip
    yield Case(
        "gate_combine", _gate_combine,
        dict(out_ptr=BF16, gates_ptr=FP32, experts_ptr=BF16, hidden_ptr=FP32, w2_ptr=BF16, b2_ptr=BF16, T=T, H=H,
             stride_xb=E * T * H, stride_xe=T * H, stride_xt=H, stride_wn=H, E=E, BLOCK_E=4, BLOCK_H=512, POOLED=True,
             **tuned("gate_combine")),
        2 * (E * T * H + E * H + H) + 4 * (H + E),
    )  # fmt: skip
    C, M, h, P, W = 256, 4, 4, 768, 1536
    yield Case(
        "xattn_context", _xattn_context,
        dict(context_ptr=FP32, attention_ptr=FP32, x_ptr=BF16, scores_ptr=BF16, T=T, C=C, M=M, stride_xb=T * C,
             stride_xt=C, HEADS=h, BLOCK_T=8, BLOCK_C=256, **tuned("xattn_context")),
        2 * (T * C + h * M * C) + 4 * (M * h * C + h * M * T),
    )  # fmt: skip
    for name, K, N, out, gelu in (
        ("xattn hidden", h * C, P, FP32, True),
        ("xattn tokens", P, W, BF16, False),
    ):
        yield Case(
            name, _rows_linear,
            dict(out_ptr=out, rows_ptr=FP32, weight_ptr=BF16, bias_ptr=FP32, residual_ptr=FP32, R=M, E=1, K=K, N=N,
                 HAS_RESIDUAL=False, GELU=gelu, PARTS=2, **tuned("rows_linear")),
            2 * N * K + 4 * (N + M * K) + out.itemsize * M * N,
        )  # fmt: skip
    # expert_fusion: R rows (b, t) a modality, `row` bytes of fp32 for one of all experts
    D, R, h, row = 1024, T, 8, 4 * E * H
    yield Case(
        "fusion_project", fusion._fusion_project,
        dict(rows_ptr=FP32, audio_ptr=BF16, vision_ptr=BF16, audio_weight_ptr=BF16, vision_weight_ptr=BF16,
             bias_ptr=FP32, RA=R, RV=R, TA=T, TV=T, DA=D, DV=D, H=H, stride_ab=T * E * D, stride_at=E * D,
             stride_vb=T * E * D, stride_vt=E * D, E=E, PARTS=fusion._ALL, **tuned("fusion_project")),
        2 * (2 * H * D + 2 * R * E * D) + 4 * H + 2 * R * row,
    )  # fmt: skip
    yield Case(
        "fusion_qkv", fusion._fusion_qkv,
        dict(qkv_ptr=FP32, rows_ptr=FP32, weight_ptr=BF16, bias_ptr=FP32, RA=R, RV=R, H=H, E=E, PARTS=fusion._ALL,
             **tuned("fusion_qkv")),
        2 * E * 3 * H * H + row * (2 * R + 1 + 3 * R),
    )  # fmt: skip
    settings = tuned("fusion_attend")
    width, parts = settings["BLOCK_N"], 4 * R * E * (H // settings["BLOCK_N"])
    yield Case(
        "fusion_attend", fusion._fusion_attend,
        dict(residual_ptr=FP32, mean_ptr=FP32, square_ptr=FP32, attention_ptr=FP32, qkv_ptr=FP32, rows_ptr=FP32,
             weight_ptr=BF16, bias_ptr=FP32, RA=R, RV=R, TA=T, TV=T, H=H, scale=0.125, E=E, C=H // h, PARTS=fusion._ALL,
             SPLIT=False, BLOCK_S=8, BLOCK_C=64, **fusion._tiling(T, settings["BLOCK_R"]), **settings),
        2 * E * H * H + row * (3 * R + R + 1 + R) + 4 * E * h * T * T + 2 * parts,
    )  # fmt: skip
    settings = tuned("fusion_hidden")
    yield Case(
        "fusion_hidden", fusion._fusion_hidden,
        dict(hidden_ptr=FP32, pooled_ptr=FP32, residual_ptr=FP32, mean_ptr=FP32, square_ptr=FP32, norm_ptr=FP32,
             norm_bias_ptr=FP32, weight_ptr=BF16, bias_ptr=FP32, R=R, T=T, H=H, NP=H // width, eps=1e-5, E=E,
             PARTS=fusion._ALL, WIDTH=width, BLOCK_P=H // width, **fusion._tiling(T, settings["BLOCK_R"]), **settings),
        2 * E * H * H + row * (R + 3 + 2) + 2 * parts,
    )  # fmt: skip
    for name, e, K, gelu in (("fusion_last", E, H, False), ("fusion_gate", 1, E * H, True)):
        yield Case(
            name, _rows_linear,
            dict(out_ptr=FP32, rows_ptr=FP32, weight_ptr=BF16, bias_ptr=FP32, residual_ptr=FP32, R=1, E=e, K=K, N=H,
                 HAS_RESIDUAL=not gelu, GELU=gelu, PARTS=fusion._ALL, **tuned(name)),
            2 * e * K * H + 4 * e * (K + (2 if gelu else 3) * H),
        )  # fmt: skip
    yield Case(
        "fusion_token", fusion._fusion_token,
        dict(token_ptr=BF16, gates_ptr=FP32, pooled_ptr=FP32, hidden_ptr=FP32, gate_ptr=BF16, gate_bias_ptr=FP32,
             weight_ptr=BF16, bias_ptr=FP32, R=1, H=H, W=W, E=E, PARTS=fusion._ALL, LAST_PARTS=fusion._MOST, BLOCK_E=16,
             **tuned("fusion_token")),
        2 * (E * H + W * H + W) + row + 4 * (H + W + 2 * E),
    )  # fmt: skip
    settings = tuned("residual_norm")
    for name, R, N, D, tap in (
        ("residual_norm vision", 8, 257, 1024, 1), ("residual_norm audio", 8, 99, 1024, 0),
        ("residual_norm face", 8, 3136, 128, 0),
    ):  # fmt: skip
        yield Case(
            name, _residual_norm,
            dict(y_ptr=BF16, hidden_ptr=BF16, update_ptr=BF16, weight_ptr=BF16, bias_ptr=BF16, tap_ptr=FP32,
                 tap_weight=1.0, R=R * N, N=N, D=D, eps=1e-5, stride_hr=N * D, stride_hn=D, stride_ur=N * D,
                 stride_un=D, stride_tr=4096, stride_td=1, HAS_UPDATE=True, HAS_NORM=True, HAS_BIAS=True, TAP=tap,
                 BLOCK_R=rows_at_once(settings["BLOCK"], D), BLOCK_D=D, **settings),
            2 * (4 * R * N * D + 2 * D) + 8 * tap * R * D,
        )  # fmt: skip
    yield Case(
        "tap_pool audio", _tap_pool,
        dict(out_ptr=FP32, hidden_ptr=BF16, weight=1.0, N=99, D=1024, count=99, stride_or=3072, stride_od=1,
             stride_hr=99 * 1024, stride_hn=1024, stride_hd=1, MEAN=True, FEW=True, **tuned("tap_pool")),
        2 * 8 * 99 * 1024 + 2 * 4 * 8 * 1024,
    )  # fmt: skip
    N, D, settings = 3136, 128, tuned("tap_part")  # the first of Swin's stages
    parts = -(-N // settings["SPAN"])
    yield Case(
        "tap_part face", _tap_part,
        dict(part_ptr=FP32, hidden_ptr=BF16, N=N, D=D, stride_hr=N * D, stride_hn=D, stride_hd=1, **settings),
        2 * 8 * N * D + 4 * 8 * parts * D,
    )  # fmt: skip
    yield Case(
        "tap_sum face", _tap_pool,
        dict(out_ptr=FP32, hidden_ptr=FP32, weight=1.0, N=parts, D=D, count=N, stride_or=1920, stride_od=1,
             stride_hr=parts * D, stride_hn=D, stride_hd=1, MEAN=True, FEW=True, **tuned("tap_sum")),
        4 * 8 * (parts + 2) * D,
    )  # fmt: skip
    for name, count, quick in (("gelu_", 8 * 99 * 4096, False), ("quick_gelu_", 8 * 257 * 4096, True)):
        yield Case(
            name, _activation, dict(x_ptr=BF16, COUNT=count, QUICK=quick, **tuned("activation")), 4 * count
        )
    # norm_act: HuBERT's first layer whole, and what follows the second product
    D, samples, kernel, stride, after = 512, 32000, 10, 5, 6399
    settings = tuned("conv_norm_act")
    yield Case(
        "conv_norm_act", _conv_norm_act,
        dict(y_ptr=BF16, x_ptr=BF16, weight_ptr=BF16, bias_ptr=BF16, norm_ptr=BF16, norm_bias_ptr=BF16, R=8 * after,
             AFTER=after, D=D, eps=1e-5, stride_xn=samples, stride_xt=1, KERNEL=kernel, STRIDE=stride, HAS_BIAS=True,
             GELU=True, BLOCK_R=rows_at_once(settings["BLOCK"], D), BLOCK_D=D, BLOCK_K=16, **settings),
        2 * (8 * samples + D * (kernel + 3) + 8 * after * D),
    )  # fmt: skip
    settings, after = tuned("norm_act"), 3199
    for width, gelu in ((D, True), (128, False)):
        yield Case(
            f"norm_act{'' if gelu else ' patches'}", _norm_act,
            dict(y_ptr=BF16, x_ptr=BF16, weight_ptr=BF16, bias_ptr=BF16, R=8 * after, D=width, eps=1e-5,
                 stride_xr=width, GELU=gelu, BLOCK_R=rows_at_once(settings["BLOCK"], width), BLOCK_D=width, **settings),
            2 * (2 * 8 * after * width + 2 * width),
        )  # fmt: skip
    C, h, side, window = 512, 16, 14, 7  # the longest of Swin's stages, 8 frames; shifted and not
    for shift in (0, 3):
        yield Case(
            f"window_attn{' shifted' * bool(shift)}", _window_attn,
            dict(out_ptr=BF16, qkv_ptr=BF16, bias_ptr=BF16, padding_ptr=BF16, height=side, width=side, C=C, scale=0.17,
                 PLACES=32, PER=1,
                 stride_xn=3 * C * side**2, stride_xt=3 * C, stride_bh=64 * 64, stride_bm=64, HEADS=h, D=C // h,
                 WINDOW=window, SHIFT=shift, PADDED=False, WHOLE=True, BLOCK_N=64, BLOCK_D=32, **tuned("window_attn")),
            2 * (8 * side**2 * 4 * C + h * 64 * 64),
        )  # fmt: skip
    h, d = 16, 64
    for name, rows in (("vision", 257), ("audio", 99)):
        strides = {f"stride_{x}{dim}": stride for x in "qkv" for dim, stride in
                   (("n", rows * 3 * h * d), ("h", d), ("m" if x == "q" else "t", 3 * h * d))}  # fmt: skip
        yield Case(
            f"attn {name}", _attn,
            dict(out_ptr=BF16, q_ptr=BF16, k_ptr=BF16, v_ptr=BF16, M=rows, T=rows, scale=0.18, **strides, HEADS=h, D=d,
                 BLOCK_D=d, LAST=block(rows % tuned("attn")["BLOCK_M"]),
                 REST=block(rows % tuned("attn")["BLOCK_N"]), **tuned("attn")),
            2 * 8 * rows * 4 * h * d,
        )  # fmt: skip
    # time_conv: HuBERT's second layer and its positions, and the first half of Swin's MLP; one clip
    for name, T, after, C, N, kernel, stride, pad, groups in (
        ("time_conv", 99, 99, 64, 64, 128, 1, 64, 16), ("time_conv_wide", 6399, 3199, 512, 512, 3, 2, 0, 1),
        ("time_conv_one", 196, 196, 512, 2048, 1, 1, 0, 1),
    ):  # fmt: skip
        yield Case(
            name, _time_conv,
            dict(out_ptr=BF16, x_ptr=BF16, weight_ptr=BF16, bias_ptr=BF16, R=8 * after, T=T, AFTER=after, N=N,
                 OUT=N * groups, stride_xn=T * C * groups, stride_xt=C * groups, C=C, KERNEL=kernel, STRIDE=stride,
                 PADDING=pad, HAS_BIAS=True, GELU=stride == 1, **tuned(name)),
            2 * (8 * T * C * groups + N * groups * (kernel * C + 1) + 8 * after * N * groups),
        )  # fmt: skip
