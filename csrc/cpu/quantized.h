// Products with int8 and int4 weights. Activations are int8, 64 to a scale; integer sums within a block, fp32 across.
#pragma once

#include "engine.h"
#include "linear.h"

namespace {

constexpr int64_t kBlock = nx::kActivationBlock;

// Activations from one of the batch on.
struct Quantized {
    const int8_t* data;
    const float* scales;
    const int32_t* sums;
};

// x [n] -> q = round(x / scale), and the sums of every 32 of q; returns the scale. NaN and infinity make it NaN.
inline float quantize(const float* x, int64_t n, int8_t* q, int32_t* sums) {
    Vec top{}, poison{};
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = load(x + i), a = v < 0.0f ? -v : v;
        top = a > top ? a : top;
        poison += v - v;  // 0, or NaN
    }
    float peak = 0;
    for (int i = 0; i < kLanes; ++i) peak = top[i] > peak ? top[i] : peak;
    const float bad = sum(poison), inverse = bad == 0.0f && peak > 0.0f ? 127.0f / peak : 0.0f;
    for (int64_t part = 0; part < n / 32; ++part) {
        VecInt total{};
        for (int64_t i = 32 * part; i < 32 * (part + 1); i += kLanes) {
            const Vec v = inverse == 0.0f ? Vec{} : load(x + i) * inverse;
            const VecInt level = (VecInt)(v + 12582912.0f) - 0x4b400000;  // rounds, as in exp
            typedef int8_t VecByte __attribute__((vector_size(kLanes)));
            const VecByte bytes = __builtin_convertvector(level, VecByte);
            std::memcpy(q + i, &bytes, kLanes);
            total += level;
        }
        sums[part] = 0;
        for (int i = 0; i < kLanes; ++i) sums[part] += total[i];
    }
    return bad == 0.0f ? peak / 127.0f : bad;
}

inline float half(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

#if defined(__AVX512VNNI__)

// One row of a matrix by kBatch activations, so that a weight is read once for several; rows one after the other are one
// stretch of memory, which the processor fetches ahead best. Unsigned times signed is what the instruction multiplies:
// int8 weights are shifted up by 128, int4 are stored 8 up, and the sums of the activation take that back.
template <int kBatch>
inline void row_int8(const Quantized& x, const int8_t* w, int64_t K, float* out, int64_t stride) {
    __m512 total[kBatch] = {};
    float shift[kBatch] = {};
    for (int64_t j = 0; j < K / kBlock; ++j) {
        const __m512i u = _mm512_xor_si512(_mm512_loadu_si512(w + j * kBlock), _mm512_set1_epi8(-128));
        for (int b = 0; b < kBatch; ++b) {
            const int64_t at = b * (K / kBlock) + j;
            const __m512i found = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, _mm512_loadu_si512(x.data + at * kBlock));
            total[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found), _mm512_set1_ps(x.scales[at]), total[b]);
            shift[b] += x.scales[at] * static_cast<float>(x.sums[2 * at] + x.sums[2 * at + 1]);
        }
    }
    for (int b = 0; b < kBatch; ++b) out[b * stride] = _mm512_reduce_add_ps(total[b]) - 128.0f * shift[b];
}

template <int kBatch>
inline void row_int4(const Quantized& x, const uint8_t* w, const uint16_t* d, int64_t K, float* out, int64_t stride) {
    __m512 total[kBatch] = {};
    const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi32(16), _mm256_setzero_si256(), 1);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t j = 0; j < K / kBlock; ++j) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + j * 32));
        const __m512i u = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(bytes, low)),
                                             _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), 1);
        int pair;
        std::memcpy(&pair, d + 2 * j, 4);
        const __m512 group = (__m512)_mm512_and_si512(_mm512_sllv_epi32(_mm512_set1_epi32(pair), shifts), upper);
        for (int b = 0; b < kBatch; ++b) {
            const int64_t at = b * (K / kBlock) + j;
            // -8 times the sums of both halves, as the starting value of a lane each.
            const __m512i start = _mm512_inserti64x4(
                _mm512_castsi256_si512(_mm256_castsi128_si256(_mm_cvtsi32_si128(-8 * x.sums[2 * at]))),
                _mm256_castsi128_si256(_mm_cvtsi32_si128(-8 * x.sums[2 * at + 1])), 1);
            const __m512i found = _mm512_dpbusd_epi32(start, u, _mm512_loadu_si512(x.data + at * kBlock));
            const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(x.scales[at]), group);
            total[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found), scale, total[b]);
        }
    }
    for (int b = 0; b < kBatch; ++b) out[b * stride] = _mm512_reduce_add_ps(total[b]);
}

#else

template <int kBatch>
inline void row_int8(const Quantized& x, const int8_t* w, int64_t K, float* out, int64_t stride) {
    for (int b = 0; b < kBatch; ++b) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            int32_t found = 0;
            for (int64_t i = 0; i < kBlock; ++i) found += int32_t{x.data[b * K + j * kBlock + i]} * w[j * kBlock + i];
            total += x.scales[b * (K / kBlock) + j] * static_cast<float>(found);
        }
        out[b * stride] = total;
    }
}

template <int kBatch>
inline void row_int4(const Quantized& x, const uint8_t* w, const uint16_t* d, int64_t K, float* out, int64_t stride) {
    for (int b = 0; b < kBatch; ++b) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            const int64_t at = b * (K / kBlock) + j;
            int32_t low = -8 * x.sums[2 * at], high = -8 * x.sums[2 * at + 1];
            for (int64_t i = 0; i < 32; ++i) {
                low += x.data[at * kBlock + i] * (w[j * 32 + i] & 15);
                high += x.data[at * kBlock + 32 + i] * (w[j * 32 + i] >> 4);
            }
            total += x.scales[at] * (half(d[2 * j]) * static_cast<float>(low) + half(d[2 * j + 1]) * static_cast<float>(high));
        }
        out[b * stride] = total;
    }
}

#endif

// body(activations, Count of them, where their outputs go) for B activations, four at a time.
template <class Body>
inline void over_batch(const nx::Activation& x, int64_t B, int64_t K, float* out, int64_t stride, Body body) {
    const auto from = [&](int64_t b) {
        return Quantized{static_cast<const int8_t*>(x.data) + b * K, x.scales + b * (K / kBlock), x.sums + b * (K / 32)};
    };
    int64_t b = 0;
    for (; b + 4 <= B; b += 4) body(from(b), Count<4>{}, out + b * stride);
    for (; b < B; ++b) body(from(b), Count<1>{}, out + b * stride);
}

// Rows [n0, n1) times each of B activations -> out [B, n1 - n0] at `stride`.
inline void multiply_int8(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0, int64_t n1,
                          float* out, int64_t stride) {
    const float* scales = static_cast<const float*>(m.scales);
    for (int64_t n = n0; n < n1; ++n) {
        const int8_t* w = static_cast<const int8_t*>(m.data) + n * K;
        over_batch(x, B, K, out + n - n0, stride, [&](const Quantized& a, auto count, float* place) {
            row_int8<decltype(count)::value>(a, w, K, place, stride);
            for (int b = 0; b < decltype(count)::value; ++b) place[b * stride] *= scales[n];
        });
    }
}

inline void multiply_int4(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0, int64_t n1,
                          float* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n) {
        const uint8_t* w = static_cast<const uint8_t*>(m.data) + n * (K / 2);
        const uint16_t* d = static_cast<const uint16_t*>(m.scales) + n * (K / 32);
        over_batch(x, B, K, out + n - n0, stride, [&](const Quantized& a, auto count, float* place) {
            row_int4<decltype(count)::value>(a, w, d, K, place, stride);
        });
    }
}

}  // namespace
