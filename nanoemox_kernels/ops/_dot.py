"""Device functions shared by kernels: rows times a weight at the precision of fp32 rows, and GELU."""

import triton
import triton.language as tl


@triton.jit
def dot(x, w, acc, PARTS: tl.constexpr):
    """acc + x w. For a bf16 w, fp32 x is split into bf16 parts: two hold 16 of its bits, three all 24.

    The product of a tile is summed separately and then added to acc with rounding: tensor cores truncate, and
    one long sum of fused multiply-adds has a larger error than PyTorch's. max_num_imprecise_acc prevents
    Triton from merging the two sums.
    """
    if x.dtype == w.dtype and w.dtype != tl.float32:
        product = tl.dot(x, w, max_num_imprecise_acc=1)
    elif w.dtype == tl.bfloat16:
        full = x.to(tl.float32)
        high = full.to(tl.bfloat16)
        remainder = full - high.to(tl.float32)
        middle = remainder.to(tl.bfloat16)
        if PARTS == 3:  # separate products for shorter chains of dependent ones
            low = (remainder - middle.to(tl.float32)).to(tl.bfloat16)
            product = tl.dot(middle, w, max_num_imprecise_acc=1) + tl.dot(low, w, max_num_imprecise_acc=1)
            product += tl.dot(high, w, max_num_imprecise_acc=1)
        else:
            product = tl.dot(high, w, tl.dot(middle, w))
    elif w.dtype == tl.float32:  # no tensor cores: even three TF32 products have larger errors than fp32
        product = tl.dot(x.to(tl.float32), w, input_precision="ieee", max_num_imprecise_acc=1)
    else:
        product = tl.dot(
            x.to(tl.float32), w.to(tl.float32), input_precision="tf32x3", max_num_imprecise_acc=1
        )
    return acc + product


@triton.jit
def rows_dot(
    rows_ptr, mask_r, weight_ptr, mask_n, K,
    PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_R,BLOCK_N]: a tile of rows times the transpose of a tile of a weight's rows.

    The pointers [BLOCK_R] and [BLOCK_N] are those of the rows' first columns.
    """
    acc = tl.zeros([BLOCK_R, BLOCK_N], dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < K
        x = tl.load(rows_ptr[:, None] + offs_k[None, :], mask=mask_r[:, None] & mask_k[None, :], other=0.0)
        w = tl.load(weight_ptr[:, None] + offs_k[None, :], mask=mask_n[:, None] & mask_k[None, :], other=0.0)
        acc = dot(x, tl.trans(w), acc, PARTS)
    return acc


@triton.jit
def gelu(x, SHORT: tl.constexpr):
    """The erf form of GELU.

    SHORT, for 16-bit results: max(x, 0) - |x| Phi(-|x|), where a fitted polynomial gives the logarithm of
    Phi, the normal distribution function. The error is at most 4e-6 relative or 4e-10 absolute. It needs one
    exponential and no division, and small results keep digits that 1 + erf loses.
    """
    if SHORT:
        s = tl.abs(x)
        high = 8.4092093e-3 + s * (-8.9770003e-4 + s * (5.6285865e-5 - 1.5024063e-6 * s))
        log_phi = -0.99999632 + s * (-1.1512249 + s * (-0.45856822 + s * (-5.3811255e-2 + s * high)))
        return tl.maximum(x, 0.0) - tl.minimum(s, 64.0) * tl.exp2(log_phi)
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
