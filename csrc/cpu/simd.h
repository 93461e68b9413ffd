// One vector type for every instruction set; its width follows the compiler's flags. Everything here is internal to the
// source that includes it: a shared inline function would be linked once, at any one level, for all of them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;

typedef float Vec __attribute__((vector_size(kBytes)));
typedef int32_t VecInt __attribute__((vector_size(kBytes)));
typedef uint32_t VecBits __attribute__((vector_size(kBytes)));
typedef uint16_t VecHalf __attribute__((vector_size(kBytes / 2)));

struct bf16 {
    uint16_t bits;
};

inline Vec splat(float value) { return value - Vec{}; }

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline Vec load(const bf16* p) {
    VecHalf half;
    std::memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)  // GCC 12 widens by halves if left to itself
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif defined(__AVX2__)
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)half), 16);
#else
    return (Vec)(__builtin_convertvector(half, VecBits) << 16);
#endif
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// To nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &half, sizeof half);
#else
    const VecBits bits = (VecBits)v;
    const VecBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const VecHalf half = __builtin_convertvector(v == v ? rounded : VecBits{} + 0x7fc0, VecHalf);
    std::memcpy(p, &half, sizeof half);
#endif
}

// The first n elements; the other lanes are 0, or are left alone in memory.
#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec load_part(const float* p, int64_t n) { return (Vec)_mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Vec load_part(const bf16* p, int64_t n) {
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)), 16);
}
inline void store_part(float* p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v); }
inline void store_part(bf16* p, Vec v, int64_t n) {
    __m256i half;
    store(reinterpret_cast<bf16*>(&half), v);
    _mm256_mask_storeu_epi16(p, first_lanes(n), half);
}
#else
template <class T>
inline Vec load_part(const T* p, int64_t n) {
    T held[kLanes] = {};
    std::memcpy(held, p, n * sizeof(T));
    return load(held);
}

template <class T>
inline void store_part(T* p, Vec v, int64_t n) {
    T held[kLanes];
    store(held, v);
    std::memcpy(p, held, n * sizeof(T));
}
#endif

// Calls body(i, load, store) for every vector of a row of n elements, the last one possibly in part.
template <class Body>
inline void each_vector(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        body(i, [](const auto* p) { return load(p); }, [](auto* p, Vec v) { store(p, v); });
    if (const int64_t left = n - i; left > 0)
        body(i, [left](const auto* p) { return load_part(p, left); },
             [left](auto* p, Vec v) { store_part(p, v, left); });
}

inline float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
#endif
}

// The largest lane; NaN is passed over.
inline float top_of(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float top = v[0];
    for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
    return top;
#endif
}

constexpr float kExp[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};

// e^x to about an ulp; 0 below -87.
inline Vec exp(Vec x) {
    const Vec below = x > 88.0f ? splat(88.0f) : x;  // a softmax never asks for more
    const Vec held = below < -88.0f ? splat(-88.0f) : below;
    const Vec shifted = held * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
    const Vec n = shifted - 12582912.0f;
    const Vec r = held - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    Vec p = splat(kExp[0]);
    for (int i = 1; i < 8; ++i) p = p * r + kExp[i];
    const VecInt scale = ((VecInt)shifted - 0x4b400000 + 127) << 23;
    const Vec y = p * (Vec)scale;
    return x < -87.0f ? Vec{} : y;
}

// 2^r for r in -1/2..1/2: to 1e-7 of itself, and to 3e-6, which is enough for what becomes bf16.
constexpr float kExp2[] = {1.3276471e-3f, 9.6755410e-3f, 5.5507131e-2f, 0.24022120f, 0.69314694f, 1.0000001f};
constexpr float kExp2Short[] = {9.5701013e-3f, 5.5917859e-2f, 0.24024744f, 0.69312179f, 0.99999928f};

// 2^x for x in -125..125, by one of these.
template <int kTerms>
inline Vec exp2_by(const float (&terms)[kTerms], Vec x) {
    const Vec shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f);
    Vec p = splat(terms[0]);
    for (int i = 1; i < kTerms; ++i) p = p * r + terms[i];
    return (Vec)((VecInt)p + ((VecInt)shifted << 23));
}

constexpr float kPhi[] = {0.1383673648f, 0.1486239555f, 0.1030026631f, 0.0809740533f, 0.1393804228f,
                          -0.1468560180f, 0.0365075746f};

// (Phi(x) - 1/2) / x as a series in x^2: (-1/2)^n / (n! (2n + 1) sqrt(2 pi)).
constexpr float kPhiNear[] = {3.989422804e-01f, -6.649038007e-02f, 9.973557010e-03f, -1.187328215e-03f, 1.154346876e-04f, -9.444656260e-06f, 6.659693516e-07f, -4.122667415e-08f, 2.273529824e-09f};

// x * Phi(x). Near 0 by the series, which adds to 1/2; beyond, Phi(-a) = exp(-a^2/2) t P(t), t = 1 / (1 + 0.35 a) and P
// fitted to 5e-9 of the result.
inline Vec gelu(Vec x) {
    const Vec a = x < 0.0f ? -x : x;
    const Vec t = 1.0f / (1.0f + 0.35f * a);
    Vec p = splat(kPhi[6]);
    for (int i = 5; i >= 0; --i) p = p * t + kPhi[i];
    const Vec tail = exp(-0.5f * a * a) * t * p;
    const Vec square = x * x;
    Vec q = splat(kPhiNear[8]);
    for (int i = 7; i >= 0; --i) q = q * square + kPhiNear[i];
    const Vec phi = x < 0.0f ? tail : 1.0f - tail;
    return x * (a < 1.0f ? 0.5f + x * q : phi);
}

// 1 / x to 6e-5 of itself or better.
inline Vec short_inverse(Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_rcp14_ps((__m512)x);
#else
    return 1.0f / x;
#endif
}

// x Phi(x) and x / (1 + e^-x) to 1e-4 of themselves: for what becomes bf16. Phi(-a) as in gelu, P fitted to 4e-5.
inline Vec short_gelu(Vec x) {
    constexpr float kShort[] = {-0.0902489349f, 0.256989837f, 0.0350860953f, 0.160422042f, 0.137772605f};
    const Vec a = x < 0.0f ? -x : x, t = short_inverse(1.0f + 0.35f * a), square = -0.72134752f * a * a;
    Vec p = splat(kShort[0]);
    for (int i = 1; i < 5; ++i) p = p * t + kShort[i];
    const Vec tail = exp2_by(kExp2Short, square < -100.0f ? splat(-100.0f) : square) * t * p;
    return x * (x < 0.0f ? tail : 1.0f - tail);
}
inline Vec short_silu(Vec x) {
    const Vec raw = -1.44269504f * x, below = raw > 125.0f ? splat(125.0f) : raw;
    return x * short_inverse(1.0f + exp2_by(kExp2Short, below < -125.0f ? splat(-125.0f) : below));
}

#if defined(__AVX512F__)
// 16 rows of 16 numbers -> their columns.
inline void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}
#endif

template <class TA, class TB>
inline float dot(const TA* a, const TB* b, int64_t n) {
    Vec even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even += load(a + i) * load(b + i);
        odd += load(a + i + kLanes) * load(b + i + kLanes);
    }
    for (; i < n; i += kLanes) {
        const int64_t left = n - i;
        even += left < kLanes ? load_part(a + i, left) * load_part(b + i, left) : load(a + i) * load(b + i);
    }
    return sum(even + odd);
}

// exp(x - max) / sum, in place.
inline void softmax(float* x, int64_t n) {
    float top = x[0];
    for (int64_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
    Vec total{};
    each_vector(n, [&](int64_t i, auto get, auto put) { put(x + i, exp(get(x + i) - top)); });
    each_vector(n, [&](int64_t i, auto get, auto) { total += get(x + i); });
    const float all = sum(total);
    each_vector(n, [&](int64_t i, auto get, auto put) { put(x + i, get(x + i) / all); });
}

}  // namespace
