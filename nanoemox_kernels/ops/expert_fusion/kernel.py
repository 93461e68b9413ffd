"""Triton kernels of expert_fusion on folded weights: seven launches, fp32 between them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tuning import on_device_of, tuned
from .._dot import dot, gelu, rows_dot
from ..temporal_xattn.kernel import _rows_linear
from .reference import FoldedExpertFusion

# bf16 parts of an fp32 row: three hold all 24 bits, for fp32 results such as the gates; two hold 16, for a
# narrower token.
_THREE_PARTS, _TWO_PARTS = 3, 2
_MAX_KEYS = 32  # keys on chip at a time


@triton.jit
def _tap_tile(
    out_ptr, x_ptr, weight_ptr, bias_ptr,
    tile, R, T, D, H,
    stride_xb, stride_xt,
    E: tl.constexpr, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """A tile of rows (b, t, e) of a modality times its projection, which the experts share."""
    offs_r = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_r, mask_n = offs_r < R, offs_n < H
    bt = offs_r // E
    rows = x_ptr + (bt // T) * stride_xb + (bt % T) * stride_xt + (offs_r % E) * D
    weight = weight_ptr + offs_n.to(tl.int64) * D
    acc = rows_dot(rows, mask_r, weight, mask_n, D, PARTS, BLOCK_R, BLOCK_N, BLOCK_K)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + offs_r[:, None] * H + offs_n[None, :], acc, mask=mask_r[:, None] & mask_n[None, :])


@triton.jit(do_not_specialize=["RA", "RV"])  # they vary with the batch
def _fusion_project(
    rows_ptr, audio_ptr, vision_ptr, audio_weight_ptr, vision_weight_ptr, bias_ptr,
    RA, RV, TA, TV, DA, DV, H,
    stride_ab, stride_at, stride_vb, stride_vt,
    E: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """rows [RA+RV,E,H]: projected taps, RA = B*TA rows of audio, then RV = B*TV of vision."""
    tile, tiles = tl.program_id(0), tl.cdiv(RA * E, BLOCK_R)
    if tile < tiles:
        _tap_tile(
            rows_ptr, audio_ptr, audio_weight_ptr, bias_ptr, tile, RA * E, TA, DA, H, stride_ab, stride_at,
            E, True, PARTS, BLOCK_R, BLOCK_N, BLOCK_K,
        )
    else:
        _tap_tile(
            rows_ptr + tl.cast(RA, tl.int64) * E * H, vision_ptr, vision_weight_ptr, bias_ptr,
            tile - tiles, RV * E, TV, DV, H, stride_vb, stride_vt,
            E, False, PARTS, BLOCK_R, BLOCK_N, BLOCK_K,
        )


@triton.jit(do_not_specialize=["RA", "RV"])
def _fusion_qkv(
    qkv_ptr, rows_ptr, weight_ptr, bias_ptr,
    RA, RV, H,
    E: tl.constexpr, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """qkv [RA+2*RV,E,H]: a tile of an expert's queries, keys or values; only queries have a bias."""
    tile, e = tl.program_id(0), tl.program_id(2).to(tl.int64)
    tiles_a, tiles_v = tl.cdiv(RA, BLOCK_R), tl.cdiv(RV, BLOCK_R)
    query = tile < tiles_a
    part = tl.where(query, 0, 1 + (tile - tiles_a) // tiles_v)  # of in_proj: queries, keys, values
    tile = tl.where(query, tile, (tile - tiles_a) % tiles_v)
    offs_r = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_r, mask_n = offs_r < tl.where(query, RA, RV), offs_n < H
    rows = rows_ptr + ((offs_r + tl.where(query, 0, RA)) * E + e) * H
    weight = weight_ptr + ((e * 3 + part) * H + offs_n) * H
    acc = rows_dot(rows, mask_r, weight, mask_n, H, PARTS, BLOCK_R, BLOCK_N, BLOCK_K)
    bias = tl.load(bias_ptr + e * H + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    acc += tl.where(query, bias, 0.0)[None, :]
    first = tl.where(query, 0, RA + (part - 1).to(tl.int64) * RV)
    place = ((first + offs_r[:, None]) * E + e) * H + offs_n[None, :]
    tl.store(qkv_ptr + place, acc, mask=mask_r[:, None] & mask_n[None, :])


@triton.jit
def _scores(
    query_ptr, key_ptr, clip_q, clip_k, mask_r, mask_k,
    scale,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Scaled scores of a tile of queries and a block of keys; keys of other clips are masked."""
    scores = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.float32)
    # A few columns at a time, to save registers.
    for start in tl.static_range(0, BLOCK_C, 16):
        offs_c = start + tl.arange(0, 16)
        mask_c = offs_c < C
        q = tl.load(query_ptr[:, None] + offs_c[None, :], mask=mask_r[:, None] & mask_c[None, :], other=0.0)
        k = tl.load(key_ptr[:, None] + offs_c[None, :], mask=mask_k[:, None] & mask_c[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="ieee")
    # Rows past the end keep all keys: a row of -inf would make NaN.
    visible = (clip_q[:, None] == clip_k[None, :]) & mask_k[None, :] | ~mask_r[:, None]
    return tl.where(visible, scores * scale, float("-inf"))


@triton.jit(do_not_specialize=["RA", "RV", "TA", "TV"])
def _fusion_attend(
    residual_ptr, mean_ptr, square_ptr, attention_ptr, qkv_ptr, rows_ptr, weight_ptr, bias_ptr,
    RA, RV, TA, TV, H, scale,
    E: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr,
    CLIPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """residual [B,TA,E,H]: output projection of the attention plus the audio row.

    A program computes an expert, CLIPS clips of TILES tiles each, and a block of outputs. Each block
    recomputes the small attention, the first block stores it. SPLIT: TV > BLOCK_S. Each block stores the mean
    and the sum of centred squares of its part of a row, for the LayerNorm of the next launch.
    """
    BLOCK_T: tl.constexpr = BLOCK_R // CLIPS
    PART: tl.constexpr = 32 if BLOCK_C > 32 else BLOCK_C
    e = tl.program_id(2).to(tl.int64)
    first_clip = (tl.program_id(0) // TILES).to(tl.int64) * CLIPS
    offs_r, offs_k = tl.arange(0, BLOCK_R), tl.arange(0, CLIPS * BLOCK_S)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    clip_q, clip_k = first_clip + offs_r // BLOCK_T, first_clip + offs_k // BLOCK_S
    t = (tl.program_id(0) % TILES) * BLOCK_T + offs_r % BLOCK_T
    bt, first_s = clip_q * TA + t, clip_k * TV + offs_k % BLOCK_S
    mask_r, mask_n = (t < TA) & (bt < RA), offs_n < H
    mask_store = mask_r & (t < tl.where(tl.program_id(1) == 0, TA, 0))  # rows of attention to store
    row = (bt * E + e) * H  # of queries, audio rows and residual
    keys = qkv_ptr + (tl.cast(RA, tl.int64) * E + e) * H
    values = tl.cast(RV, tl.int64) * E * H  # they follow the keys
    acc = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    for column in range(0, H, C):  # a head
        top = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK_R], dtype=tl.float32)
        if SPLIT:  # a separate pass computes maximum and sum of the softmax
            for start in range(0, TV, BLOCK_S):
                mask_k = (start + offs_k % BLOCK_S < TV) & (first_s + start < RV)
                key = keys + (first_s + start) * E * H + column
                scores = _scores(
                    qkv_ptr + row + column, key, clip_q, clip_k, mask_r, mask_k, scale,
                    C, BLOCK_R, CLIPS * BLOCK_S, BLOCK_C,
                )
                higher = tl.maximum(top, tl.max(scores, axis=1))
                total = total * tl.exp(top - higher) + tl.sum(tl.exp(scores - higher[:, None]), axis=1)
                top = higher
        for start in range(0, TV if SPLIT else BLOCK_S, BLOCK_S):
            s = start + offs_k % BLOCK_S
            mask_k = (s < TV) & (first_s + start < RV)
            key = keys + (first_s + start) * E * H + column
            scores = _scores(
                qkv_ptr + row + column, key, clip_q, clip_k, mask_r, mask_k, scale,
                C, BLOCK_R, CLIPS * BLOCK_S, BLOCK_C,
            )
            if not SPLIT:
                top = tl.max(scores, axis=1)
                total = tl.sum(tl.exp(scores - top[:, None]), axis=1)
            weights = tl.exp(scores - top[:, None]) / total[:, None]
            place = (((clip_q * E + e) * H + column) // C * TA + t) * TV  # H // C heads
            tl.store(
                attention_ptr + place[:, None] + s[None, :], weights,
                mask=(clip_q[:, None] == clip_k[None, :]) & mask_store[:, None] & mask_k[None, :],
            )
            for first_c in tl.static_range(0, BLOCK_C, PART):
                offs_c = first_c + tl.arange(0, PART)
                mask_c = offs_c < C
                v = tl.load(
                    key[:, None] + values + offs_c[None, :],
                    mask=mask_k[:, None] & mask_c[None, :], other=0.0,
                )
                mixed = tl.zeros([BLOCK_R, PART], dtype=tl.float32)
                for clip in tl.static_range(CLIPS):  # separately: 0 * NaN of another clip is NaN
                    own = tl.where((clip_k == first_clip + clip)[:, None], v, 0.0)
                    product = tl.dot(weights, own, input_precision="ieee")
                    mixed += tl.where((clip_q == first_clip + clip)[:, None], product, 0.0)
                w = tl.load(
                    weight_ptr + ((e * H + offs_n) * H)[:, None] + (column + offs_c)[None, :],
                    mask=mask_n[:, None] & mask_c[None, :], other=0.0,
                )
                acc = dot(mixed, tl.trans(w), acc, PARTS)
    mask = mask_r[:, None] & mask_n[None, :]
    place = row[:, None] + offs_n[None, :]
    acc += tl.load(bias_ptr + e * H + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    acc += tl.load(rows_ptr + place, mask=mask, other=0.0)
    tl.store(residual_ptr + place, acc, mask=mask)
    mean = tl.sum(tl.where(mask_n[None, :], acc, 0.0), axis=1) / tl.sum(mask_n.to(tl.float32), axis=0)
    # The mask follows the product so that it is not fused into the sum: all lanes must store the same value.
    centred = acc - mean[:, None]
    squares = tl.where(mask_n[None, :], centred * centred, 0.0)
    part = (bt * E + e) * tl.num_programs(1) + tl.program_id(1)
    tl.store(mean_ptr + part, mean, mask=mask_r)
    tl.store(square_ptr + part, tl.sum(squares, axis=1), mask=mask_r)


@triton.jit(do_not_specialize=["R", "T"])
def _fusion_hidden(
    hidden_ptr, pooled_ptr, residual_ptr, mean_ptr, square_ptr, norm_ptr, norm_bias_ptr, weight_ptr, bias_ptr,
    R, T, H, NP, eps,
    E: tl.constexpr, PARTS: tl.constexpr, TILES: tl.constexpr, CLIPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """hidden, pooled [B,E,H]: means over T of gelu(W LayerNorm(residual) + b) and of the residual.

    A tile has CLIPS whole clips, or one clip has TILES tiles. Mean and variance of a row are computed from
    those of its NP parts of WIDTH numbers.
    """
    BLOCK_T: tl.constexpr = BLOCK_R // CLIPS
    e = tl.program_id(2).to(tl.int64)
    first_clip = tl.program_id(0).to(tl.int64) * CLIPS
    offs_r, offs_p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_p, mask_n = offs_p < NP, offs_n < H
    count = tl.minimum(H - offs_p * WIDTH, WIDTH).to(tl.float32)  # of a part
    clip = first_clip + offs_r // BLOCK_T
    weight = weight_ptr + (e * H + offs_n) * H
    bias = tl.load(bias_ptr + e * H + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    hidden = tl.zeros([CLIPS, BLOCK_N], dtype=tl.float32)
    pooled = tl.zeros([CLIPS, BLOCK_N], dtype=tl.float32)
    for tile in range(TILES):
        t = tile * BLOCK_T + offs_r % BLOCK_T
        bt = clip * T + t
        mask_r = (t < T) & (bt < R)
        row = residual_ptr + (bt * E + e) * H
        part, mask = ((bt * E + e) * NP)[:, None] + offs_p[None, :], mask_r[:, None] & mask_p[None, :]
        means = tl.load(mean_ptr + part, mask=mask, other=0.0)
        squares = tl.load(square_ptr + part, mask=mask, other=0.0)
        mean = tl.sum(means * count[None, :], axis=1) / H
        apart = means - mean[:, None]
        squares += tl.where(mask_p[None, :], count[None, :] * apart * apart, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / H + eps)
        acc = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
        for k in range(0, H, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < H
            x = tl.load(row[:, None] + offs_k[None, :], mask=mask_r[:, None] & mask_k[None, :], other=0.0)
            norm = tl.load(norm_ptr + e * H + offs_k, mask=mask_k, other=0.0).to(tl.float32)
            norm_bias = tl.load(norm_bias_ptr + e * H + offs_k, mask=mask_k, other=0.0).to(tl.float32)
            w = tl.load(weight[:, None] + offs_k[None, :], mask=mask_n[:, None] & mask_k[None, :], other=0.0)
            normed = (x - mean[:, None]) * scale[:, None] * norm[None, :] + norm_bias[None, :]
            acc = dot(normed, tl.trans(w), acc, PARTS)
        activated = tl.where(mask_r[:, None], gelu(acc + bias[None, :], False), 0.0)
        hidden += tl.sum(tl.reshape(activated, [CLIPS, BLOCK_T, BLOCK_N]), axis=1)
        own = tl.load(row[:, None] + offs_n[None, :], mask=mask_r[:, None] & mask_n[None, :], other=0.0)
        pooled += tl.sum(tl.reshape(own, [CLIPS, BLOCK_T, BLOCK_N]), axis=1)
    clips = first_clip + tl.arange(0, CLIPS)
    place = (clips[:, None] * E + e) * H + offs_n[None, :]
    mask = (clips * T < R)[:, None] & mask_n[None, :]
    tl.store(hidden_ptr + place, hidden / T, mask=mask)
    tl.store(pooled_ptr + place, pooled / T, mask=mask)


@triton.jit(do_not_specialize=["R"])
def _fusion_token(
    token_ptr, gates_ptr, pooled_ptr, hidden_ptr, gate_ptr, gate_bias_ptr, weight_ptr, bias_ptr,
    R, H, W,
    E: tl.constexpr, PARTS: tl.constexpr, LAST_PARTS: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """token [B,W]: projection of the weighted sum of experts.

    Each block of outputs recomputes the gates, the first stores them.
    """
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_e = tl.arange(0, BLOCK_E)
    mask_r, mask_n, mask_e = offs_r < R, offs_n < W, offs_e < E
    scores = rows_dot(
        hidden_ptr + offs_r * H, mask_r, gate_ptr + offs_e * H, mask_e, H, PARTS, BLOCK_R, BLOCK_E, BLOCK_K
    )
    scores += tl.load(gate_bias_ptr + offs_e, mask=mask_e, other=0.0).to(tl.float32)[None, :]
    scores = tl.where(mask_e[None, :], scores, float("-inf"))
    gates = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    gates = gates / tl.sum(gates, axis=1)[:, None]  # [BLOCK_R, BLOCK_E]
    if tl.program_id(1) == 0:
        place = gates_ptr + offs_r[:, None] * E + offs_e[None, :]
        tl.store(place, gates, mask=mask_r[:, None] & mask_e[None, :])
    acc = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    for k in range(0, H, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < H
        x = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.float32)
        for e in tl.static_range(E):
            gate = tl.sum(tl.where(offs_e[None, :] == e, gates, 0.0), axis=1)
            place = pooled_ptr + (offs_r[:, None] * E + e) * H + offs_k[None, :]
            x += gate[:, None] * tl.load(place, mask=mask_r[:, None] & mask_k[None, :], other=0.0)
        w = tl.load(
            weight_ptr + offs_n[:, None].to(tl.int64) * H + offs_k[None, :],
            mask=mask_n[:, None] & mask_k[None, :], other=0.0,
        )
        acc = dot(x, tl.trans(w), acc, LAST_PARTS)
    acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    place = token_ptr + offs_r[:, None] * W + offs_n[None, :]
    tl.store(place, acc.to(token_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_n[None, :])


def _tiling(T: int, block: int) -> dict[str, int]:
    """Tiles of `block` rows (b, t): one to four whole clips per tile, or a part of a longer clip."""
    steps = min(max(triton.next_power_of_2(T), block // 4), block)
    return {"CLIPS": block // steps, "TILES": triton.cdiv(T, steps)}


def expert_fusion_fwd(
    audio: Tensor, vision: Tensor, weights: FoldedExpertFusion, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    (B, TA, _), TV, cdiv = audio.shape, vision.shape[1], triton.cdiv
    (E, H), W = weights.gate.shape, weights.project.shape[0]
    audio, vision = (t if t.stride(-1) == 1 else t.contiguous() for t in (audio, vision))
    w = FoldedExpertFusion(*(t.contiguous() for t in weights))

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=audio.device)

    token = torch.empty(B, W, dtype=audio.dtype, device=audio.device)
    gates, attention = empty(B, E), empty(B, E, heads, TA, TV)
    if B == 0:
        return token, gates, attention
    last_parts = _THREE_PARTS if token.dtype == torch.float32 else _TWO_PARTS
    rows, qkv, residual = empty(B * (TA + TV), E, H), empty(B * (TA + 2 * TV), E, H), empty(B, TA, E, H)
    hidden, pooled, experts, gate_hidden = empty(B, E, H), empty(B, E, H), empty(B, E, H), empty(B, H)
    with on_device_of(token):  # the tensors' GPU, not the current one
        use = tuned("fusion_project")
        tiles = sum(cdiv(B * T * E, use["BLOCK_R"]) for T in (TA, TV))
        _fusion_project[(tiles, cdiv(H, use["BLOCK_N"]))](
            rows, audio, vision, w.audio, w.vision, w.audio_bias, B * TA, B * TV, TA, TV, w.audio.shape[1],
            w.vision.shape[1], H, *audio.stride()[:2], *vision.stride()[:2], E=E, PARTS=_THREE_PARTS, **use,
        )
        use = tuned("fusion_qkv")
        tiles = cdiv(B * TA, use["BLOCK_R"]) + 2 * cdiv(B * TV, use["BLOCK_R"])
        _fusion_qkv[(tiles, cdiv(H, use["BLOCK_N"]), E)](
            qkv, rows, w.qkv, w.query_bias, B * TA, B * TV, H, E=E, PARTS=_THREE_PARTS, **use
        )
        use = tuned("fusion_attend")
        tile = _tiling(TA, use["BLOCK_R"])
        parts, width = cdiv(H, use["BLOCK_N"]), use["BLOCK_N"]
        means, squares = empty(B, TA, E, parts), empty(B, TA, E, parts)
        C, keys = H // heads, max(triton.next_power_of_2(TV), 16 // tile["CLIPS"])  # tl.dot needs 16
        block = min(keys, _MAX_KEYS // tile["CLIPS"])
        if keys > block or C > 128:  # prefetched loads would not fit into shared memory
            use = {**use, "num_stages": 1}
        _fusion_attend[(cdiv(B, tile["CLIPS"]) * tile["TILES"], parts, E)](
            residual, means, squares, attention, qkv, rows, w.out, w.out_bias, B * TA, B * TV, TA, TV, H,
            C**-0.5, E=E, C=C, PARTS=_THREE_PARTS, SPLIT=keys > block, BLOCK_S=block,
            BLOCK_C=max(triton.next_power_of_2(C), 16), **tile, **use,
        )
        use = tuned("fusion_hidden")
        tile = _tiling(TA, use["BLOCK_R"])
        _fusion_hidden[(cdiv(B, tile["CLIPS"]), cdiv(H, use["BLOCK_N"]), E)](
            hidden, pooled, residual, means, squares, w.norm, w.norm_bias, w.hidden, w.hidden_bias, B * TA,
            TA, H, parts, 1e-5, E=E, PARTS=_THREE_PARTS, WIDTH=width,
            BLOCK_P=triton.next_power_of_2(parts), **tile, **use,
        )
        use = tuned("fusion_last")
        _rows_linear[(cdiv(B, use["BLOCK_R"]), cdiv(H, use["BLOCK_N"]), E)](
            experts, hidden, w.last, w.last_bias, pooled, B, E, H, H, HAS_RESIDUAL=True, GELU=False,
            PARTS=_THREE_PARTS, **use
        )
        use = tuned("fusion_gate")
        _rows_linear[(cdiv(B, use["BLOCK_R"]), cdiv(H, use["BLOCK_N"]), 1)](
            gate_hidden, experts, w.gate_hidden, w.gate_hidden_bias, experts, B, 1, E * H, H,
            HAS_RESIDUAL=False, GELU=True, PARTS=_THREE_PARTS, **use,
        )
        use = tuned("fusion_token")
        _fusion_token[(cdiv(B, use["BLOCK_R"]), cdiv(W, use["BLOCK_N"]))](
            token, gates, experts, gate_hidden, w.gate, w.gate_bias, w.project, w.project_bias, B, H, W, E=E,
            PARTS=_THREE_PARTS, LAST_PARTS=last_parts,
            BLOCK_E=max(triton.next_power_of_2(E), 16), **use,
        )
    return token, gates, attention
