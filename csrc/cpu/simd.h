// One vector type for all instruction sets; its width follows from the compiler's flags. Everything here has
// internal linkage: of an inline function with external linkage the linker would keep the code of one
// arbitrary level for all of them.
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
#if defined(__AVX512F__)  // GCC 12 would widen in two halves
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif defined(__AVX2__)
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)half), 16);
#else
    return (Vec)(__builtin_convertvector(half, VecBits) << 16);
#endif
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// Rounds to nearest, ties to even; NaN stays NaN.
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

// Loads and stores of the first n lanes. A load fills the other lanes with 0; a store leaves their memory
// unchanged.
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
    T padded[kLanes] = {};
    std::memcpy(padded, p, n * sizeof(T));
    return load(padded);
}

template <class T>
inline void store_part(T* p, Vec v, int64_t n) {
    T padded[kLanes];
    store(padded, v);
    std::memcpy(p, padded, n * sizeof(T));
}
#endif

// Calls body(i, load, store) for every vector of a row of n elements. The last vector may be partial.
template <class Body>
inline void for_each_vector(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        body(i, [](const auto* p) { return load(p); }, [](auto* p, Vec v) { store(p, v); });
    if (const int64_t remaining = n - i; remaining > 0)
        body(
            i, [remaining](const auto* p) { return load_part(p, remaining); },
            [remaining](auto* p, Vec v) { store_part(p, v, remaining); });
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

// The largest lane, ignoring NaN.
inline float max_lane(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float top = v[0];
    for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
    return top;
#endif
}

constexpr float kExp[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};

// e^x with an error of about one ulp; 0 below -87.
inline Vec exp(Vec x) {
    const Vec upper = x > 88.0f ? splat(88.0f) : x;  // the arguments of a softmax are at most 0
    const Vec clamped = upper < -88.0f ? splat(-88.0f) : upper;
    const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    const Vec n = shifted - 12582912.0f;
    const Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    Vec p = splat(kExp[0]);
    for (int i = 1; i < 8; ++i) p = p * r + kExp[i];
    const VecInt scale = ((VecInt)shifted - 0x4b400000 + 127) << 23;
    const Vec y = p * (Vec)scale;
    return x < -87.0f ? Vec{} : y;
}

// Coefficients of 2^r for r in [-1/2, 1/2], with a relative error of 1e-7, and of 3e-6, which suffices for
// results that are rounded to bf16.
constexpr float kExp2[] = {1.3276471e-3f, 9.6755410e-3f, 5.5507131e-2f, 0.24022120f, 0.69314694f, 1.0000001f};
constexpr float kExp2Fast[] = {9.5701013e-3f, 5.5917859e-2f, 0.24024744f, 0.69312179f, 0.99999928f};

// 2^x for x in [-125, 125], by one of these polynomials.
template <int kTerms>
inline Vec exp2_polynomial(const float (&terms)[kTerms], Vec x) {
    const Vec shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f);
    Vec p = splat(terms[0]);
    for (int i = 1; i < kTerms; ++i) p = p * r + terms[i];
    return (Vec)((VecInt)p + ((VecInt)shifted << 23));
}

constexpr float kPhi[] = {0.1383673648f, 0.1486239555f,  0.1030026631f, 0.0809740533f,
                          0.1393804228f, -0.1468560180f, 0.0365075746f};

// (Phi(x) - 1/2) / x as a series in x^2: (-1/2)^n / (n! (2n + 1) sqrt(2 pi)).
constexpr float kPhiNear[] = {3.989422804e-01f,  -6.649038007e-02f, 9.973557010e-03f,
                              -1.187328215e-03f, 1.154346876e-04f,  -9.444656260e-06f,
                              6.659693516e-07f,  -4.122667415e-08f, 2.273529824e-09f};

// x * Phi(x). For |x| < 1 by the series around 0; elsewhere by Phi(-a) = exp(-a^2/2) t P(t), t = 1 / (1 +
// 0.35 a), with P fitted to a relative error of 5e-9.
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

// 1 / x with a relative error of at most 6e-5.
inline Vec fast_reciprocal(Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_rcp14_ps((__m512)x);
#else
    return 1.0f / x;
#endif
}

// x Phi(x) and x / (1 + e^-x) with a relative error of 1e-4, for results that are rounded to bf16. Phi(-a) as
// in gelu, with P fitted to 4e-5.
inline Vec fast_gelu(Vec x) {
    constexpr float kPhiFast[] = {-0.0902489349f, 0.256989837f, 0.0350860953f, 0.160422042f, 0.137772605f};
    const Vec a = x < 0.0f ? -x : x, t = fast_reciprocal(1.0f + 0.35f * a), square = -0.72134752f * a * a;
    Vec p = splat(kPhiFast[0]);
    for (int i = 1; i < 5; ++i) p = p * t + kPhiFast[i];
    const Vec tail = exp2_polynomial(kExp2Fast, square < -100.0f ? splat(-100.0f) : square) * t * p;
    return x * (x < 0.0f ? tail : 1.0f - tail);
}
inline Vec fast_silu(Vec x) {
    const Vec exponent = -1.44269504f * x, upper = exponent > 125.0f ? splat(125.0f) : exponent;
    return x * fast_reciprocal(1.0f + exp2_polynomial(kExp2Fast, upper < -125.0f ? splat(-125.0f) : upper));
}

#if defined(__AVX512F__)
// Transposes a 16 x 16 matrix of 32-bit elements.
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
        const int64_t remaining = n - i;
        even += remaining < kLanes ? load_part(a + i, remaining) * load_part(b + i, remaining)
                                   : load(a + i) * load(b + i);
    }
    return sum(even + odd);
}

// exp(x - max) / sum, in place.
inline void softmax(float* x, int64_t n) {
    float top = x[0];
    for (int64_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
    Vec total{};
    for_each_vector(n, [&](int64_t i, auto get, auto put) { put(x + i, exp(get(x + i) - top)); });
    for_each_vector(n, [&](int64_t i, auto get, auto) { total += get(x + i); });
    const float denominator = sum(total);
    for_each_vector(n, [&](int64_t i, auto get, auto put) { put(x + i, get(x + i) / denominator); });
}

}  // namespace
