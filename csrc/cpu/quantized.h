// Products with int8 and int4 weights. Activations are integers too, 64 to a scale: 8 bits beside int4 weights where VNNI
// is, else 16 bits. Integer sums within a block, fp32 across.
#pragma once

#include "engine.h"
#include "linear.h"

namespace {

constexpr int64_t kBlock = nx::kActivationBlock;

// Activations from one of the batch on.
struct Quantized {
    const void* data;
    const float* scales;
    const int32_t* sums;
    const float* spread;
    const float* lift;
};

// The largest level: of 16 bits both bytes are signed, so that each can be multiplied by itself.
template <class Level>
constexpr float kTop = sizeof(Level) == 1 ? 127 : 127 * 256;

// x [n] -> q = round(x / scale), and the sums of every 32 of q; returns the scale. NaN and infinity make it NaN.
template <class Level>
inline float quantize(const float* x, int64_t n, Level* q, int32_t* sums) {
    Vec top{}, poison{};
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = load(x + i), a = v < 0.0f ? -v : v;
        top = a > top ? a : top;
        poison += v - v;  // 0, or NaN
    }
    float peak = 0;
    for (int i = 0; i < kLanes; ++i) peak = top[i] > peak ? top[i] : peak;
    const float bad = sum(poison), inverse = bad == 0.0f && peak > 0.0f ? kTop<Level> / peak : 0.0f;
    for (int64_t part = 0; part < n / 32; ++part) {
        VecInt total{};
        for (int64_t i = 32 * part; i < 32 * (part + 1); i += kLanes) {
            const Vec v = inverse == 0.0f ? Vec{} : load(x + i) * inverse;
            const VecInt level = (VecInt)(v + 12582912.0f) - 0x4b400000;  // rounds, as in exp
            typedef Level VecLevel __attribute__((vector_size(kLanes * sizeof(Level))));
            const VecLevel levels = __builtin_convertvector(level, VecLevel);
            std::memcpy(q + i, &levels, sizeof levels);
            total += level;
        }
        sums[part] = 0;
        for (int i = 0; i < kLanes; ++i) sums[part] += total[i];
    }
    return bad == 0.0f ? peak / kTop<Level> : bad;
}

inline float half(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

#if defined(__AVX512VNNI__)

// Unsigned times signed is what the instruction multiplies: int8 weights are shifted up by 128, int4 are stored 8 up. What
// that adds depends on the activation alone, or on it and a group's scale: it is made once an activation, as its `lift`.

constexpr int64_t kPair = 2 * kBlock;

inline int64_t pairs_of(int64_t K) { return (K + kPair - 1) / kPair; }

// A block of 16 bits, to meet int8 weights: its upper bytes, its lower bytes, and what shifted weights add to each lane. A
// product more for each weight costs nothing, since the weights come from memory, and 8 bits cost quality.
struct Planes {
    int8_t upper[kBlock], lower[kBlock];
    int32_t lift[kBlock / 4];
};

// The block and its scale. NaN and infinity make the scale NaN.
inline void planes_of(const float* x, Planes* out, float* scale) {
    __m512 v[4], top = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_loadu_ps(x + 16 * i);
        const __m512 size = _mm512_abs_ps(v[i]);
        bad |= _mm512_cmp_ps_mask(size, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
        top = _mm512_max_ps(top, size);
    }
    const float peak = bad ? 0 : _mm512_reduce_max_ps(top), inverse = peak > 0.0f ? kTop<int16_t> / peak : 0.0f;
    for (int i = 0; i < 4; ++i) {
        const __m512 y = inverse == 0.0f ? _mm512_setzero_ps() : _mm512_mul_ps(v[i], _mm512_set1_ps(inverse));
        const __m512i level = _mm512_cvtps_epi32(y), upper = _mm512_srai_epi32(_mm512_add_epi32(level, _mm512_set1_epi32(128)), 8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out->upper + 16 * i), _mm512_cvtepi32_epi8(upper));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out->lower + 16 * i), _mm512_cvtepi32_epi8(level));
    }
    const __m512i one = _mm512_set1_epi8(1), none = _mm512_setzero_si512();
    const __m512i upper = _mm512_dpbusd_epi32(none, one, _mm512_loadu_si512(out->upper));
    const __m512i all = _mm512_dpbusd_epi32(_mm512_slli_epi32(upper, 8), one, _mm512_loadu_si512(out->lower));
    _mm512_storeu_si512(out->lift, _mm512_sub_epi32(none, _mm512_slli_epi32(all, 7)));
    *scale = bad ? __builtin_nanf("") : peak / kTop<int16_t>;
}

// Block j of one of the batch. For int4 two blocks lie as half, half, other half, other half, as their weights' nibbles do,
// and `spread` holds their scales as a vector; K is filled up with zeros to whole pairs.
inline void hold(const nx::Activation& x, bool int4, int64_t K, int64_t b, int64_t j, const float* block) {
    if (!int4) {
        const int64_t at = b * (K / kBlock) + j;
        planes_of(block, static_cast<Planes*>(x.data) + at, x.scales + at);
        return;
    }
    int8_t* data = static_cast<int8_t*>(x.data);
    int32_t sums[2];
    int8_t q[kBlock];
    const float scale = quantize(block, kBlock, q, sums);
    const int64_t pair = b * pairs_of(K) + j / 2, side = j % 2;
    const auto put = [&](int64_t where, const int8_t* from, float value) {
        std::memcpy(data + pair * kPair + 32 * where, from, 32);
        std::memcpy(data + pair * kPair + 32 * where + 64, from + 32, 32);
        for (int i = 0; i < 8; ++i) x.spread[pair * 16 + 8 * where + i] = value;
    };
    put(side, q, scale);
    for (int h = 0; h < 2; ++h) x.lift[b * (K / 32) + 2 * j + h] = -8.0f * scale * static_cast<float>(sums[h]);
    const int8_t nothing[kBlock] = {};
    if (side == 0 && j + 1 == K / kBlock) put(1, nothing, 0.0f);
}

// 16 scales from bf16, of which `count` are there.
inline __m512 scales_from(const uint16_t* d, int64_t count) {
    const __mmask16 there = count < 16 ? (1u << count) - 1 : 0xffff;
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, d)), 16);
}

// One row of a matrix by kBatch activations, so that a weight is read once for several; rows one after the other are one
// stretch of memory, which the processor fetches ahead best.
template <int kBatch>
inline void row_int8(const Quantized& x, const int8_t* w, const uint16_t* d, int64_t K, float* out, int64_t stride) {
    const int64_t blocks = K / kBlock;
    const Planes* planes = static_cast<const Planes*>(x.data);
    __m512 total[kBatch] = {};
    for (int64_t first = 0; first < blocks; first += 16) {
        const int64_t count = blocks - first < 16 ? blocks - first : 16;
        const __m512 own = scales_from(d + first, count);
        alignas(64) float factor[kBatch][16];
        for (int b = 0; b < kBatch; ++b)
            _mm512_store_ps(factor[b], _mm512_mul_ps(own, _mm512_maskz_loadu_ps(count < 16 ? (1u << count) - 1 : 0xffff,
                                                                                x.scales + b * blocks + first)));
        for (int64_t j = 0; j < count; ++j) {
            const int8_t* from = w + (first + j) * kBlock;
            _mm_prefetch(from + 4096, _MM_HINT_T0);
            const __m512i u = _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(-128));
            for (int b = 0; b < kBatch; ++b) {
                const Planes& a = planes[b * blocks + first + j];
                const __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, _mm512_loadu_si512(a.upper));
                const __m512i both = _mm512_dpbusd_epi32(_mm512_slli_epi32(upper, 8), u, _mm512_loadu_si512(a.lower));
                const __m512 found = _mm512_cvtepi32_ps(_mm512_add_epi32(both, _mm512_loadu_si512(a.lift)));
                total[b] = _mm512_fmadd_ps(found, _mm512_set1_ps(factor[b][j]), total[b]);
            }
        }
    }
    for (int b = 0; b < kBatch; ++b) out[b * stride] = _mm512_reduce_add_ps(total[b]);
}

template <int kBatch>
inline void row_int4(const Quantized& x, const uint8_t* w, const uint16_t* d, int64_t K, float* out, int64_t stride) {
    const int64_t whole = K / kPair, pairs = pairs_of(K);
    __m512 total[kBatch] = {};
    const __m512i low = _mm512_set1_epi8(15), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    const auto scales_of = [&](int64_t block) {  // of both halves of a block, as stored
        int found;
        std::memcpy(&found, d + 2 * block, 4);
        return found;
    };
    const auto add = [&](int64_t p, __m512i bytes, __m512i scales) {
        const __m512i first = _mm512_and_si512(bytes, low), second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        const __m512 d0 = (__m512)_mm512_slli_epi32(scales, 16), d1 = (__m512)_mm512_and_si512(scales, upper);
        for (int b = 0; b < kBatch; ++b) {
            const int8_t* a = static_cast<const int8_t*>(x.data) + (b * pairs + p) * kPair;
            const __m512i f0 = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first, _mm512_loadu_si512(a));
            const __m512i f1 = _mm512_dpbusd_epi32(_mm512_setzero_si512(), second, _mm512_loadu_si512(a + 64));
            const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(f1), d1, _mm512_mul_ps(_mm512_cvtepi32_ps(f0), d0));
            total[b] = _mm512_fmadd_ps(both, _mm512_loadu_ps(x.spread + (b * pairs + p) * 16), total[b]);
        }
    };
    for (int64_t p = 0; p < whole; ++p) {
        _mm_prefetch(w + p * 64 + 4096, _MM_HINT_T0);
        add(p, _mm512_loadu_si512(w + p * 64),
            _mm512_mask_set1_epi32(_mm512_set1_epi32(scales_of(2 * p)), 0xff00, scales_of(2 * p + 1)));}
    if (whole < pairs)
        add(whole, _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + whole * 64))),
            _mm512_maskz_set1_epi32(0x00ff, scales_of(2 * whole)));
    for (int64_t g = 0; g < K / 32; g += 16) {
        const __mmask16 there = K / 32 - g < 16 ? (1u << (K / 32 - g)) - 1 : 0xffff;
        const __m512 own = scales_from(d + g, K / 32 - g);
        for (int b = 0; b < kBatch; ++b)
            total[b] = _mm512_fmadd_ps(own, _mm512_maskz_loadu_ps(there, x.lift + b * (K / 32) + g), total[b]);
    }
    for (int b = 0; b < kBatch; ++b) out[b * stride] = _mm512_reduce_add_ps(total[b]);
}

inline Quantized from(const nx::Activation& x, bool int4, int64_t b, int64_t K) {
    if (!int4) return {static_cast<const Planes*>(x.data) + b * (K / kBlock), x.scales + b * (K / kBlock), {}, {}, {}};
    const int64_t wide = pairs_of(K) * kPair;
    return {static_cast<const int8_t*>(x.data) + b * wide, nullptr, nullptr, x.spread + b * (wide / 8), x.lift + b * (K / 32)};
}

#else

inline void hold(const nx::Activation& x, bool, int64_t K, int64_t b, int64_t j, const float* block) {
    const int64_t at = b * (K / kBlock) + j;
    x.scales[at] = quantize(block, kBlock, static_cast<int16_t*>(x.data) + at * kBlock, x.sums + 2 * at);
}

// d: scales of the row's blocks, or null.
template <int kBatch>
inline void row_int8(const Quantized& x, const int8_t* w, const uint16_t* d, int64_t K, float* out, int64_t stride) {
    const int16_t* data = static_cast<const int16_t*>(x.data);
    for (int b = 0; b < kBatch; ++b, data += K) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            int32_t found = 0;
            for (int64_t i = j * kBlock; i < (j + 1) * kBlock; ++i) found += int32_t{data[i]} * w[i];
            total += x.scales[b * (K / kBlock) + j] * (d ? half(d[j]) : 1.0f) * static_cast<float>(found);
        }
        out[b * stride] = total;
    }
}

template <int kBatch>
inline void row_int4(const Quantized& x, const uint8_t* w, const uint16_t* d, int64_t K, float* out, int64_t stride) {
    const int16_t* data = static_cast<const int16_t*>(x.data);
    for (int b = 0; b < kBatch; ++b, data += K) {
        float total = 0;
        for (int64_t j = 0; j < K / kBlock; ++j) {
            const int64_t at = b * (K / kBlock) + j;
            int32_t low = -8 * x.sums[2 * at], high = -8 * x.sums[2 * at + 1];
            for (int64_t i = 0; i < 32; ++i) {
                low += int32_t{data[j * kBlock + i]} * (w[j * 32 + i] & 15);
                high += int32_t{data[j * kBlock + 32 + i]} * (w[j * 32 + i] >> 4);
            }
            total += x.scales[at] * (half(d[2 * j]) * static_cast<float>(low) + half(d[2 * j + 1]) * static_cast<float>(high));
        }
        out[b * stride] = total;
    }
}

inline Quantized from(const nx::Activation& x, bool, int64_t b, int64_t K) {
    return {static_cast<const int16_t*>(x.data) + b * K, x.scales + b * (K / kBlock), x.sums + b * (K / 32), {}, {}};
}

#endif

// body(activations, Count of them, where their outputs go) for B activations, four at a time.
template <class Body>
inline void over_batch(const nx::Activation& x, bool int4, int64_t B, int64_t K, float* out, int64_t stride, Body body) {
    int64_t b = 0;
    for (; b + 4 <= B; b += 4) body(from(x, int4, b, K), Count<4>{}, out + b * stride);
    for (; b < B; ++b) body(from(x, int4, b, K), Count<1>{}, out + b * stride);
}

// Rows [n0, n1) times each of B activations -> out [B, n1 - n0] at `stride`.
inline void multiply_int8(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0, int64_t n1,
                          float* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n) {
        const int8_t* w = static_cast<const int8_t*>(m.data) + n * K;
        const uint16_t* d = static_cast<const uint16_t*>(m.scales) + n * (K / kBlock);
        over_batch(x, false, B, K, out + n - n0, stride, [&](const Quantized& a, auto count, float* place) {
            row_int8<decltype(count)::value>(a, w, d, K, place, stride);
        });
    }
}

inline void multiply_int4(const nx::Activation& x, int64_t B, const nx_matrix& m, int64_t K, int64_t n0, int64_t n1,
                          float* out, int64_t stride) {
    for (int64_t n = n0; n < n1; ++n) {
        const uint8_t* w = static_cast<const uint8_t*>(m.data) + n * (K / 2);
        const uint16_t* d = static_cast<const uint16_t*>(m.scales) + n * (K / 32);
        over_batch(x, true, B, K, out + n - n0, stride, [&](const Quantized& a, auto count, float* place) {
            row_int4<decltype(count)::value>(a, w, d, K, place, stride);
        });
    }
}

}  // namespace
