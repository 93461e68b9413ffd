// Products with int8 and int4 weights. Activations are int8, 64 to a scale; integer sums within a block, fp32 across.
#pragma once

#include "engine.h"
#include "linear.h"

namespace {

constexpr int64_t kBlock = nx::kActivationBlock;

// x [64] -> q = round(x / scale), and the sums of both halves of q; returns the scale. NaN and infinity make it NaN.
inline float quantize(const float* x, int8_t* q, int32_t* sums) {
    Vec top{}, poison{};
    for (int64_t i = 0; i < kBlock; i += kLanes) {
        const Vec v = load(x + i), a = v < 0.0f ? -v : v;
        top = a > top ? a : top;
        poison += v - v;  // 0, or NaN
    }
    float peak = 0;
    for (int i = 0; i < kLanes; ++i) peak = top[i] > peak ? top[i] : peak;
    const float bad = sum(poison);
    if (!(bad == 0.0f) || peak == 0.0f) {
        std::memset(q, 0, kBlock);
        sums[0] = sums[1] = 0;
        return bad == 0.0f ? 0.0f : bad;
    }
    const float inverse = 127.0f / peak;
    sums[0] = sums[1] = 0;
    for (int64_t i = 0; i < kBlock; i += kLanes) {
        const Vec v = load(x + i) * inverse + 12582912.0f;  // rounds, as in exp
        const VecInt n = (VecInt)v - 0x4b400000;
        for (int j = 0; j < kLanes; ++j) {
            q[i + j] = static_cast<int8_t>(n[j]);
            sums[(i + j) / 32] += n[j];
        }
    }
    return peak / 127.0f;
}

inline float half(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

#if defined(__AVX512VNNI__)

// kRows rows of a matrix by one activation; unsigned times signed is what the instruction multiplies, so the weights are
// shifted up by 128 (int8) or are stored 8 up (int4), and the activation's sums take that back.
template <int kRows>
inline void rows_int8(const int8_t* x, const float* scales, const int32_t* sums, const int8_t* w, int64_t K, float* out) {
    __m512 total[kRows] = {};
    float shift = 0;
    for (int64_t j = 0; j < K / kBlock; ++j) {
        const __m512i a = _mm512_loadu_si512(x + j * kBlock);
        const __m512 scale = _mm512_set1_ps(scales[j]);
        shift += scales[j] * static_cast<float>(sums[2 * j] + sums[2 * j + 1]);
        for (int r = 0; r < kRows; ++r) {
            const __m512i u = _mm512_xor_si512(_mm512_loadu_si512(w + r * K + j * kBlock), _mm512_set1_epi8(-128));
            const __m512i found = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, a);
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found), scale, total[r]);
        }
    }
    for (int r = 0; r < kRows; ++r) out[r] = _mm512_reduce_add_ps(total[r]) - 128.0f * shift;
}

template <int kRows>
inline void rows_int4(const int8_t* x, const float* scales, const int32_t* sums, const uint8_t* w, const uint16_t* d,
                      int64_t K, float* out) {
    __m512 total[kRows] = {};
    const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi32(16), _mm256_setzero_si256(), 1);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t j = 0; j < K / kBlock; ++j) {
        const __m512i a = _mm512_loadu_si512(x + j * kBlock);
        const __m512 scale = _mm512_set1_ps(scales[j]);
        // -8 times the sums of the halves, as the starting value of one lane each.
        const __m512i start = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_castsi128_si256(_mm_cvtsi32_si128(-8 * sums[2 * j]))),
            _mm256_castsi128_si256(_mm_cvtsi32_si128(-8 * sums[2 * j + 1])), 1);
        for (int r = 0; r < kRows; ++r) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + r * (K / 2) + j * 32));
            const __m512i u = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(bytes, low)),
                                                 _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), 1);
            const __m512i found = _mm512_dpbusd_epi32(start, u, a);
            int pair;
            std::memcpy(&pair, d + r * (K / 32) + 2 * j, 4);
            const __m512 group = (__m512)_mm512_and_si512(_mm512_sllv_epi32(_mm512_set1_epi32(pair), shifts), upper);
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found), _mm512_mul_ps(scale, group), total[r]);
        }
    }
    for (int r = 0; r < kRows; ++r) out[r] = _mm512_reduce_add_ps(total[r]);
}

#else

template <int kRows>
inline void rows_int8(const int8_t* x, const float* scales, const int32_t*, const int8_t* w, int64_t K, float* out) {
    for (int r = 0; r < kRows; ++r) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            int32_t found = 0;
            for (int64_t i = j * kBlock; i < (j + 1) * kBlock; ++i) found += int32_t{x[i]} * w[r * K + i];
            total += scales[j] * static_cast<float>(found);
        }
        out[r] = total;
    }
}

template <int kRows>
inline void rows_int4(const int8_t* x, const float* scales, const int32_t* sums, const uint8_t* w, const uint16_t* d,
                      int64_t K, float* out) {
    for (int r = 0; r < kRows; ++r) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            int32_t low = -8 * sums[2 * j], high = -8 * sums[2 * j + 1];
            for (int64_t i = 0; i < 32; ++i) {
                const uint8_t byte = w[r * (K / 2) + j * 32 + i];
                low += x[j * kBlock + i] * (byte & 15);
                high += x[j * kBlock + 32 + i] * (byte >> 4);
            }
            const uint16_t* pair = d + r * (K / 32) + 2 * j;
            total += scales[j] * (half(pair[0]) * static_cast<float>(low) + half(pair[1]) * static_cast<float>(high));
        }
        out[r] = total;
    }
}

#endif

// Rows [n0, n1) times each of B activations -> out [B, n1 - n0] at `stride`.
inline void multiply_int8(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0, int64_t n1,
                          float* out, int64_t stride) {
    const int8_t* w = static_cast<const int8_t*>(m.data);
    const float* row_scales = static_cast<const float*>(m.scales);
    const auto rows = [&](int64_t n, auto count) {
        for (int64_t b = 0; b < B; ++b) {
            float found[4];
            rows_int8<decltype(count)::value>(static_cast<const int8_t*>(x.data) + b * K, x.scales + b * (K / kBlock),
                                              x.sums + b * (K / 32), w + n * K, K, found);
            for (int r = 0; r < decltype(count)::value; ++r) out[b * stride + n - n0 + r] = found[r] * row_scales[n + r];
        }
    };
    int64_t n = n0;
    for (; n + 4 <= n1; n += 4) rows(n, Count<4>{});
    for (; n < n1; ++n) rows(n, Count<1>{});
}

inline void multiply_int4(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0, int64_t n1,
                          float* out, int64_t stride) {
    const uint8_t* w = static_cast<const uint8_t*>(m.data);
    const uint16_t* d = static_cast<const uint16_t*>(m.scales);
    const auto rows = [&](int64_t n, auto count) {
        for (int64_t b = 0; b < B; ++b) {
            float found[4];
            rows_int4<decltype(count)::value>(static_cast<const int8_t*>(x.data) + b * K, x.scales + b * (K / kBlock),
                                              x.sums + b * (K / 32), w + n * (K / 2), d + n * (K / 32), K, found);
            for (int r = 0; r < decltype(count)::value; ++r) out[b * stride + n - n0 + r] = found[r];
        }
    };
    int64_t n = n0;
    for (; n + 4 <= n1; n += 4) rows(n, Count<4>{});
    for (; n < n1; ++n) rows(n, Count<1>{});
}

}  // namespace
