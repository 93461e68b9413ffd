// Products with int8 and int4 weights. Activations are quantised in blocks of 64 with one scale each: to 8
// bits for int4 weights with VNNI, to 16 bits otherwise. Sums are integers within a block and fp32 across
// blocks.
#pragma once

#include "engine.h"
#include "linear.h"

namespace {

constexpr int64_t kBlock = nx::kActivationBlock;

// The activations of a batch, beginning at one of its rows; the members are those of nx::Activation.
struct QuantizedRows {
    const void* data;
    const float* scales;
    const int32_t* sums;
    const float* pair_scales;
    const float* corrections;
};

// The largest quantised value. For 16 bits it leaves both bytes signed, so that each can be
// multiplied separately.
template <class Integer>
constexpr float kMaxLevel = sizeof(Integer) == 1 ? 127 : 127 * 256;

// q [n] = round(x / scale) and the sums of every 32 elements of q. Returns the scale, which is NaN if x
// contains NaN or infinity.
template <class Integer>
inline float quantize(const float* x, int64_t n, Integer* q, int32_t* sums) {
    Vec top{}, non_finite{};
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = load(x + i), a = v < 0.0f ? -v : v;
        top = a > top ? a : top;
        non_finite += v - v;  // 0, or NaN
    }
    float peak = 0;
    for (int i = 0; i < kLanes; ++i) peak = top[i] > peak ? top[i] : peak;
    const float bad = sum(non_finite),
                inverse = bad == 0.0f && peak > 0.0f ? kMaxLevel<Integer> / peak : 0.0f;
    for (int64_t part = 0; part < n / 32; ++part) {
        VecInt total{};
        for (int64_t i = 32 * part; i < 32 * (part + 1); i += kLanes) {
            const Vec v = inverse == 0.0f ? Vec{} : load(x + i) * inverse;
            const VecInt level = (VecInt)(v + 12582912.0f) - 0x4b400000;  // rounds, as in exp
            typedef Integer VecInteger __attribute__((vector_size(kLanes * sizeof(Integer))));
            const VecInteger levels = __builtin_convertvector(level, VecInteger);
            std::memcpy(q + i, &levels, sizeof levels);
            total += level;
        }
        sums[part] = 0;
        for (int i = 0; i < kLanes; ++i) sums[part] += total[i];
    }
    return bad == 0.0f ? peak / kMaxLevel<Integer> : bad;
}

inline float bf16_to_float(uint16_t bits) {
    const uint32_t shifted_bits = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &shifted_bits, 4);
    return value;
}

#if defined(__AVX512VNNI__)

// The VNNI instruction multiplies unsigned by signed integers. Weights are made unsigned: int8 weights by
// adding 128; int4 weights are stored with 8 added. The product of this zero point with the activation does
// not depend on the weights' values; its negative is computed once per activation, as a correction.

constexpr int64_t kPair = 2 * kBlock;

inline int64_t pairs_of(int64_t K) { return (K + kPair - 1) / kPair; }

// A 16-bit activation block for int8 weights: upper bytes, lower bytes and the correction of each lane. The
// second product per weight is free because loading the weights is the bottleneck; 8-bit activations would
// lose accuracy.
struct Planes {
    int8_t upper[kBlock], lower[kBlock];
    int32_t correction[kBlock / 4];
};

// Quantises a block. The scale is NaN if x contains NaN or infinity.
inline void quantize_planes(const float* x, Planes* out, float* scale) {
    __m512 v[4], top = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_loadu_ps(x + 16 * i);
        const __m512 size = _mm512_abs_ps(v[i]);
        bad |= _mm512_cmp_ps_mask(size, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
        top = _mm512_max_ps(top, size);
    }
    const float peak = bad ? 0 : _mm512_reduce_max_ps(top),
                inverse = peak > 0.0f ? kMaxLevel<int16_t> / peak : 0.0f;
    for (int i = 0; i < 4; ++i) {
        const __m512 y = inverse == 0.0f ? _mm512_setzero_ps() : _mm512_mul_ps(v[i], _mm512_set1_ps(inverse));
        const __m512i level = _mm512_cvtps_epi32(y),
                      upper = _mm512_srai_epi32(_mm512_add_epi32(level, _mm512_set1_epi32(128)), 8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out->upper + 16 * i), _mm512_cvtepi32_epi8(upper));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out->lower + 16 * i), _mm512_cvtepi32_epi8(level));
    }
    const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    const __m512i upper = _mm512_dpbusd_epi32(zero, ones, _mm512_loadu_si512(out->upper));
    const __m512i total =
        _mm512_dpbusd_epi32(_mm512_slli_epi32(upper, 8), ones, _mm512_loadu_si512(out->lower));
    _mm512_storeu_si512(out->correction, _mm512_sub_epi32(zero, _mm512_slli_epi32(total, 7)));
    *scale = bad ? __builtin_nanf("") : peak / kMaxLevel<int16_t>;
}

// Quantises and packs block j of row b. For int4 weights the halves of a pair of blocks are ordered like the
// nibbles of the weights: both first halves, then both second halves. K is padded with zeros to whole pairs.
inline void pack_activation(const nx::Activation& x, bool int4, int64_t K, int64_t b, int64_t j,
                            const float* block) {
    if (!int4) {
        const int64_t index = b * (K / kBlock) + j;
        quantize_planes(block, static_cast<Planes*>(x.data) + index, x.scales + index);
        return;
    }
    int8_t* data = static_cast<int8_t*>(x.data);
    int32_t sums[2];
    int8_t q[kBlock];
    const float scale = quantize(block, kBlock, q, sums);
    const int64_t pair = b * pairs_of(K) + j / 2, side = j % 2;
    const auto put = [&](int64_t position, const int8_t* source, float value) {
        std::memcpy(data + pair * kPair + 32 * position, source, 32);
        std::memcpy(data + pair * kPair + 32 * position + 64, source + 32, 32);
        for (int i = 0; i < 8; ++i) x.pair_scales[pair * 16 + 8 * position + i] = value;
    };
    put(side, q, scale);
    for (int h = 0; h < 2; ++h)
        x.corrections[b * (K / 32) + 2 * j + h] = -8.0f * scale * static_cast<float>(sums[h]);
    const int8_t padding[kBlock] = {};
    if (side == 0 && j + 1 == K / kBlock) put(1, padding, 0.0f);
}

// Loads `count` <= 16 bf16 scales; the other lanes are 0.
inline __m512 load_scales(const uint16_t* d, int64_t count) {
    const __mmask16 mask = count < 16 ? (1u << count) - 1 : 0xffff;
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, d)), 16);
}

// One row of a matrix times kBatch activations, which share each load of the weights. Processing one row
// after the other reads memory sequentially, as the hardware prefetcher expects.
template <int kBatch>
inline void row_int8(const QuantizedRows& x, const int8_t* w, const uint16_t* d, int64_t K, float* out,
                     int64_t stride) {
    const int64_t blocks = K / kBlock;
    const Planes* planes = static_cast<const Planes*>(x.data);
    __m512 total[kBatch] = {};
    for (int64_t first = 0; first < blocks; first += 16) {
        const int64_t count = blocks - first < 16 ? blocks - first : 16;
        const __m512 weight_scales = load_scales(d + first, count);
        alignas(64) float factor[kBatch][16];
        for (int b = 0; b < kBatch; ++b)
            _mm512_store_ps(
                factor[b],
                _mm512_mul_ps(weight_scales, _mm512_maskz_loadu_ps(count < 16 ? (1u << count) - 1 : 0xffff,
                                                                   x.scales + b * blocks + first)));
        for (int64_t j = 0; j < count; ++j) {
            const int8_t* block = w + (first + j) * kBlock;
            _mm_prefetch(block + 4096, _MM_HINT_T0);
            const __m512i u = _mm512_xor_si512(_mm512_loadu_si512(block), _mm512_set1_epi8(-128));
            for (int b = 0; b < kBatch; ++b) {
                const Planes& a = planes[b * blocks + first + j];
                const __m512i upper =
                    _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, _mm512_loadu_si512(a.upper));
                const __m512i shifted =
                    _mm512_dpbusd_epi32(_mm512_slli_epi32(upper, 8), u, _mm512_loadu_si512(a.lower));
                const __m512 product =
                    _mm512_cvtepi32_ps(_mm512_add_epi32(shifted, _mm512_loadu_si512(a.correction)));
                total[b] = _mm512_fmadd_ps(product, _mm512_set1_ps(factor[b][j]), total[b]);
            }
        }
    }
    for (int b = 0; b < kBatch; ++b) out[b * stride] = _mm512_reduce_add_ps(total[b]);
}

template <int kBatch>
inline void row_int4(const QuantizedRows& x, const uint8_t* w, const uint16_t* d, int64_t K, float* out,
                     int64_t stride) {
    const int64_t whole = K / kPair, pairs = pairs_of(K);
    __m512 total[kBatch] = {};
    const __m512i low = _mm512_set1_epi8(15), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const auto scales_of = [&](int64_t block) {  // both bf16 scales of a block, in one int
        int scales;
        std::memcpy(&scales, d + 2 * block, 4);
        return scales;
    };
    const auto add = [&](int64_t p, __m512i bytes, __m512i scales) {
        const __m512i first = _mm512_and_si512(bytes, low),
                      second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        const __m512 d0 = (__m512)_mm512_slli_epi32(scales, 16), d1 = (__m512)_mm512_and_si512(scales, upper);
        for (int b = 0; b < kBatch; ++b) {
            const int8_t* a = static_cast<const int8_t*>(x.data) + (b * pairs + p) * kPair;
            const __m512i f0 = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first, _mm512_loadu_si512(a));
            const __m512i f1 =
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), second, _mm512_loadu_si512(a + 64));
            const __m512 product =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(f1), d1, _mm512_mul_ps(_mm512_cvtepi32_ps(f0), d0));
            total[b] =
                _mm512_fmadd_ps(product, _mm512_loadu_ps(x.pair_scales + (b * pairs + p) * 16), total[b]);
        }
    };
    for (int64_t p = 0; p < whole; ++p) {
        _mm_prefetch(w + p * 64 + 4096, _MM_HINT_T0);
        add(p, _mm512_loadu_si512(w + p * 64),
            _mm512_mask_set1_epi32(_mm512_set1_epi32(scales_of(2 * p)), 0xff00, scales_of(2 * p + 1)));
    }
    if (whole < pairs)
        add(whole,
            _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + whole * 64))),
            _mm512_maskz_set1_epi32(0x00ff, scales_of(2 * whole)));
    for (int64_t g = 0; g < K / 32; g += 16) {
        const __mmask16 mask = K / 32 - g < 16 ? (1u << (K / 32 - g)) - 1 : 0xffff;
        const __m512 weight_scales = load_scales(d + g, K / 32 - g);
        for (int b = 0; b < kBatch; ++b)
            total[b] = _mm512_fmadd_ps(
                weight_scales, _mm512_maskz_loadu_ps(mask, x.corrections + b * (K / 32) + g), total[b]);
    }
    for (int b = 0; b < kBatch; ++b) out[b * stride] = _mm512_reduce_add_ps(total[b]);
}

inline QuantizedRows activation_row(const nx::Activation& x, bool int4, int64_t b, int64_t K) {
    if (!int4)
        return {
            static_cast<const Planes*>(x.data) + b * (K / kBlock), x.scales + b * (K / kBlock), {}, {}, {}};
    const int64_t padded = pairs_of(K) * kPair;
    return {static_cast<const int8_t*>(x.data) + b * padded, nullptr, nullptr,
            x.pair_scales + b * (padded / 8), x.corrections + b * (K / 32)};
}

#else

inline void pack_activation(const nx::Activation& x, bool, int64_t K, int64_t b, int64_t j,
                            const float* block) {
    const int64_t index = b * (K / kBlock) + j;
    x.scales[index] =
        quantize(block, kBlock, static_cast<int16_t*>(x.data) + index * kBlock, x.sums + 2 * index);
}

// d: the scales of the row's blocks, or null: all 1.
template <int kBatch>
inline void row_int8(const QuantizedRows& x, const int8_t* w, const uint16_t* d, int64_t K, float* out,
                     int64_t stride) {
    const int16_t* data = static_cast<const int16_t*>(x.data);
    for (int b = 0; b < kBatch; ++b, data += K) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            int32_t product = 0;
            for (int64_t i = j * kBlock; i < (j + 1) * kBlock; ++i) product += int32_t{data[i]} * w[i];
            total += x.scales[b * (K / kBlock) + j] * (d ? bf16_to_float(d[j]) : 1.0f) *
                     static_cast<float>(product);
        }
        out[b * stride] = total;
    }
}

template <int kBatch>
inline void row_int4(const QuantizedRows& x, const uint8_t* w, const uint16_t* d, int64_t K, float* out,
                     int64_t stride) {
    const int16_t* data = static_cast<const int16_t*>(x.data);
    for (int b = 0; b < kBatch; ++b, data += K) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            const int64_t index = b * (K / kBlock) + j;
            int32_t low = -8 * x.sums[2 * index], high = -8 * x.sums[2 * index + 1];
            for (int64_t i = 0; i < 32; ++i) {
                low += int32_t{data[j * kBlock + i]} * (w[j * 32 + i] & 15);
                high += int32_t{data[j * kBlock + 32 + i]} * (w[j * 32 + i] >> 4);
            }
            total += x.scales[index] * (bf16_to_float(d[2 * j]) * static_cast<float>(low) +
                                        bf16_to_float(d[2 * j + 1]) * static_cast<float>(high));
        }
        out[b * stride] = total;
    }
}

inline QuantizedRows activation_row(const nx::Activation& x, bool, int64_t b, int64_t K) {
    return {static_cast<const int16_t*>(x.data) + b * K,
            x.scales + b * (K / kBlock),
            x.sums + b * (K / 32),
            {},
            {}};
}

#endif

// Calls body(activations, Count of them, output) for B activations, four at a time.
template <class Body>
inline void for_each_batch(const nx::Activation& x, bool int4, int64_t B, int64_t K, float* out,
                           int64_t stride, Body body) {
    int64_t b = 0;
    for (; b + 4 <= B; b += 4) body(activation_row(x, int4, b, K), Count<4>{}, out + b * stride);
    for (; b < B; ++b) body(activation_row(x, int4, b, K), Count<1>{}, out + b * stride);
}

// out [B, n1 - n0], rows `stride` apart = B activations times rows [n0, n1) of the matrix.
inline void multiply_int8(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0,
                          int64_t n1, float* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n) {
        const int8_t* w = static_cast<const int8_t*>(m.data) + n * K;
        const uint16_t* d = static_cast<const uint16_t*>(m.scales) + n * (K / kBlock);
        for_each_batch(x, false, B, K, out + n - n0, stride,
                       [&](const QuantizedRows& a, auto count, float* output) {
                           row_int8<decltype(count)::value>(a, w, d, K, output, stride);
                       });
    }
}

inline void multiply_int4(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0,
                          int64_t n1, float* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n) {
        const uint8_t* w = static_cast<const uint8_t*>(m.data) + n * (K / 2);
        const uint16_t* d = static_cast<const uint16_t*>(m.scales) + n * (K / 32);
        for_each_batch(x, true, B, K, out + n - n0, stride,
                       [&](const QuantizedRows& a, auto count, float* output) {
                           row_int4<decltype(count)::value>(a, w, d, K, output, stride);
                       });
    }
}

}  // namespace
