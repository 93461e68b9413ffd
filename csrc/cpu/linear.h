// out = x W^T + b on row-major weights, in register tiles of kLanes outputs.
#pragma once

#include "simd.h"

namespace {

#if defined(__GNUC__) && !defined(__clang__)
// Lane i of the result is the sum over the lanes of v[i]. Each level adds neighbouring lanes of two vectors.
template <int kStride>
inline void fold(Vec* v) {
    VecInt low, high;
    for (int i = 0; i < kLanes; ++i) {
        const int from = (i & kStride ? kLanes : 0) + (i & ~kStride);
        low[i] = from;
        high[i] = from + kStride;
    }
    for (int i = 0; i < kLanes / kStride / 2; ++i)
        v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low) + __builtin_shuffle(v[2 * i], v[2 * i + 1], high);
    if constexpr (2 * kStride < kLanes) fold<2 * kStride>(v);
}
inline Vec sums(Vec* v) {
    fold<1>(v);
    return v[0];
}
#else
inline Vec sums(Vec* v) {
    Vec total;
    for (int i = 0; i < kLanes; ++i) total[i] = sum(v[i]);
    return total;
}
#endif

inline void put(float* p, float value) { *p = value; }
inline void put(bf16* p, float value) { store_part(p, splat(value), 1); }

// acc += a * b over n <= kStep numbers. Two bf16 operands have an instruction of their own, exact but for the sum.
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

// kRows x kCols outputs, kRows * kCols = kLanes; lane r * kCols + c of the result is row r, column c.
template <int kRows, int kCols, class TX, class TW>
inline Vec tile(const TX* x, int64_t stride_x, const TW* w, int64_t K) {
    typedef Step<TX, TW> S;
    static_assert(kRows * kCols == kLanes);
    Vec acc[kLanes] = {};
    int64_t k = 0;
    const auto step = [&](const TX* px, int64_t sx, const TW* pw, int64_t sw) {
        typename S::W held[kCols];
        for (int c = 0; c < kCols; ++c) held[c] = S::w(pw + c * sw);
        for (int r = 0; r < kRows; ++r) {
            const typename S::X row = S::x(px + r * sx);
            for (int c = 0; c < kCols; ++c) S::add(acc[r * kCols + c], row, held[c]);
        }
    };
    for (; k + S::kStep <= K; k += S::kStep) step(x + k, stride_x, w + k, K);
    if (k < K) {
        TX left_x[kRows * S::kStep] = {};
        TW left_w[kCols * S::kStep] = {};
        for (int r = 0; r < kRows; ++r) std::memcpy(left_x + r * S::kStep, x + r * stride_x + k, (K - k) * sizeof(TX));
        for (int c = 0; c < kCols; ++c) std::memcpy(left_w + c * S::kStep, w + c * K + k, (K - k) * sizeof(TW));
        step(left_x, S::kStep, left_w, S::kStep);
    }
    return sums(acc);
}

template <int kValue>
struct Count {
    static constexpr int value = kValue;
};

template <int kRows, class TX, class TW, class TOut>
inline void rows_by_columns(const TX* x, int64_t stride_x, const TW* w, const float* bias, int64_t n0, int64_t n1,
                            int64_t K, TOut* out, int64_t stride_out) {
    constexpr int kCols = kLanes / kRows;
    int64_t n = n0;
    const auto emit = [&](Vec found, int64_t width) {
        for (int r = 0; r < kRows; ++r)
            for (int64_t c = 0; c < width; ++c)
                put(out + r * stride_out + n + c, found[r * kCols + c] + (bias ? bias[n + c] : 0.0f));
    };
    for (; n + kCols <= n1; n += kCols) emit(tile<kRows, kCols>(x, stride_x, w + n * K, K), kCols);
    for (; n < n1; ++n)
        for (int r = 0; r < kRows; ++r)
            put(out + r * stride_out + n, dot(x + r * stride_x, w + n * K, K) + (bias ? bias[n] : 0.0f));
}

// Columns [n0, n1) of out [M, N] = x [M, K] w^T + bias (or null); w [N, K] contiguous. Rows outside, columns inside: a
// tile of rows stays in the first cache while the weights stream by.
template <class TX, class TW, class TOut>
inline void linear(const TX* x, int64_t stride_x, int64_t M, const TW* w, const float* bias, int64_t n0, int64_t n1,
                   int64_t K, TOut* out, int64_t stride_out) {
    int64_t m = 0;
    const auto rows = [&](auto count) {
        constexpr int kRows = decltype(count)::value;
        for (; m + kRows <= M; m += kRows)
            rows_by_columns<kRows>(x + m * stride_x, stride_x, w, bias, n0, n1, K, out + m * stride_out, stride_out);
    };
    rows(Count<kLanes / 4>{});  // four columns: the fewest loads a product
    if constexpr (kLanes >= 16) rows(Count<2>{});
    if constexpr (kLanes >= 8) rows(Count<1>{});
}

}  // namespace
