// out = x W^T + b on row-major weights, in register tiles of kLanes outputs.
#pragma once

#include "simd.h"

namespace {

#if defined(__GNUC__) && !defined(__clang__)
// Reduces kLanes vectors: lane i of v[0] becomes the sum of the lanes of v[i]. Each recursion adds
// neighbouring lanes of two vectors.
template <int kStride>
inline void reduce_lanes(Vec* v) {
    VecInt low, high;
    for (int i = 0; i < kLanes; ++i) {
        const int source = (i & kStride ? kLanes : 0) + (i & ~kStride);
        low[i] = source;
        high[i] = source + kStride;
    }
    for (int i = 0; i < kLanes / kStride / 2; ++i)
        v[i] =
            __builtin_shuffle(v[2 * i], v[2 * i + 1], low) + __builtin_shuffle(v[2 * i], v[2 * i + 1], high);
    if constexpr (2 * kStride < kLanes) reduce_lanes<2 * kStride>(v);
}
inline Vec lane_sums(Vec* v) {
    reduce_lanes<1>(v);
    return v[0];
}
#else
inline Vec lane_sums(Vec* v) {
    Vec total;
    for (int i = 0; i < kLanes; ++i) total[i] = sum(v[i]);
    return total;
}
#endif

inline void store_scalar(float* p, float value) { *p = value; }
inline void store_scalar(bf16* p, float value) { store_part(p, splat(value), 1); }

// acc += x * w over kStep elements. The instruction for two bf16 operands forms exact products.
template <class TX, class TW>
struct Step {
    static constexpr int kStep = kLanes;
    typedef Vec X;
    typedef Vec W;
    static X x(const TX* p) { return load(p); }
    static W w(const TW* p) { return load(p); }
    static void add(Vec& acc, X x, W w) { acc += x * w; }
};

#if defined(__AVX512BF16__)
template <>
struct Step<bf16, bf16> {
    static constexpr int kStep = 2 * kLanes;
    typedef __m512bh X;
    typedef __m512bh W;
    static X x(const bf16* p) {
        X v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static W w(const bf16* p) { return x(p); }
    static void add(Vec& acc, X x, W w) { acc = (Vec)_mm512_dpbf16_ps((__m512)acc, x, w); }
};
#endif

// kRows x kCols outputs, kRows * kCols = kLanes. Lane r * kCols + c of the result is row r, column c.
template <int kRows, int kCols, class TX, class TW>
inline Vec tile(const TX* x, int64_t stride_x, const TW* w, int64_t K) {
    typedef Step<TX, TW> S;
    static_assert(kRows * kCols == kLanes);
    Vec acc[kLanes] = {};
    int64_t k = 0;
    const auto step = [&](const TX* px, int64_t sx, const TW* pw, int64_t sw) {
        typename S::W columns[kCols];
        for (int c = 0; c < kCols; ++c) columns[c] = S::w(pw + c * sw);
        for (int r = 0; r < kRows; ++r) {
            const typename S::X row = S::x(px + r * sx);
            for (int c = 0; c < kCols; ++c) S::add(acc[r * kCols + c], row, columns[c]);
        }
    };
    for (; k + S::kStep <= K; k += S::kStep) step(x + k, stride_x, w + k, K);
    if (k < K) {
        TX tail_x[kRows * S::kStep] = {};
        TW tail_w[kCols * S::kStep] = {};
        for (int r = 0; r < kRows; ++r)
            std::memcpy(tail_x + r * S::kStep, x + r * stride_x + k, (K - k) * sizeof(TX));
        for (int c = 0; c < kCols; ++c)
            std::memcpy(tail_w + c * S::kStep, w + c * K + k, (K - k) * sizeof(TW));
        step(tail_x, S::kStep, tail_w, S::kStep);
    }
    return lane_sums(acc);
}

template <int kValue>
struct Count {
    static constexpr int value = kValue;
};

template <int kRows, class TX, class TW, class TOut>
inline void rows_by_columns(const TX* x, int64_t stride_x, const TW* w, const float* bias, int64_t n0,
                            int64_t n1, int64_t K, TOut* out, int64_t stride_out) {
    constexpr int kCols = kLanes / kRows;
    int64_t n = n0;
    const auto store_tile = [&](Vec products, int64_t width) {
        for (int r = 0; r < kRows; ++r)
            for (int64_t c = 0; c < width; ++c)
                store_scalar(out + r * stride_out + n + c,
                             products[r * kCols + c] + (bias ? bias[n + c] : 0.0f));
    };
    for (; n + kCols <= n1; n += kCols) store_tile(tile<kRows, kCols>(x, stride_x, w + n * K, K), kCols);
    for (; n < n1; ++n)
        for (int r = 0; r < kRows; ++r)
            store_scalar(out + r * stride_out + n,
                         dot(x + r * stride_x, w + n * K, K) + (bias ? bias[n] : 0.0f));
}

// Columns [n0, n1) of out [M, N] = x [M, K] w^T + bias (or null); w [N, K] is contiguous. The outer loop runs
// over rows: a tile of rows stays in the L1 cache while the weights are streamed.
template <class TX, class TW, class TOut>
inline void linear(const TX* x, int64_t stride_x, int64_t M, const TW* w, const float* bias, int64_t n0,
                   int64_t n1, int64_t K, TOut* out, int64_t stride_out) {
    int64_t m = 0;
    const auto rows = [&](auto count) {
        constexpr int kRows = decltype(count)::value;
        for (; m + kRows <= M; m += kRows)
            rows_by_columns<kRows>(x + m * stride_x, stride_x, w, bias, n0, n1, K, out + m * stride_out,
                                   stride_out);
    };
    rows(Count<kLanes / 4>{});  // four columns: the fewest loads per product
    if constexpr (kLanes >= 16) rows(Count<2>{});
    if constexpr (kLanes >= 8) rows(Count<1>{});
}

}  // namespace
