// attention: for every head keys and values are put into the order in which the dot product wants them, then six queries
// at a time meet them. Scores stay in the first cache, in fp32.
#include <algorithm>
#include <limits>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "simd.h"

namespace {

constexpr int kRows = 6;                            // 24 sums, 4 operands and a number fill the registers of AVX-512
constexpr int kVectors = kLanes >= 16 ? 4 : 2;      // and 12 sums those of lower levels
constexpr int kColumns = kVectors * kLanes;         // of a panel

// What products are formed of: bf16 in pairs where there is an instruction for them, else fp32.
template <class T>
struct Operand {
    typedef float Held;
    static constexpr int kPair = 1;
};
inline Vec several(const float* p) { return load(p); }
inline Vec one(const float* p) { return splat(*p); }
inline void accumulate(Vec& sum, Vec w, Vec x) { sum += w * x; }

#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
    typedef bf16 Held;
    static constexpr int kPair = 2;
};
inline __m512i several(const bf16* p) { return _mm512_loadu_si512(p); }
inline __m512i one(const bf16* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    return _mm512_set1_epi32(both);
}
// The intrinsic, but GCC 12 keeps a second copy of every sum in memory around that.
inline void accumulate(Vec& sum, __m512i w, __m512i x) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}
#endif

inline float number(float x) { return x; }
inline float number(bf16 x) {
    const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
inline void keep(float* p, float x) { *p = x; }
inline void keep(float* p, bf16 x) { *p = number(x); }
[[maybe_unused]] inline void keep(bf16* p, bf16 x) { *p = x; }

inline int64_t over(int64_t n, int64_t step) { return (n + step - 1) / step; }
inline int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Where what is in a thread's own memory. The sizes are those of fp32, which bf16 fills by half.
struct Plan {
    int64_t depth, tokens, wide, across;  // d; T in whole vectors and in whole panels; d in whole panels
    int64_t keys = 0, values, scores, weights, queries, mixed, bytes;

    Plan(int64_t T, int64_t d)
        : depth(over(d, 2) * 2), tokens(over(T, kLanes) * kLanes), wide(over(T, kColumns) * kColumns),
          across(over(d, kColumns) * kColumns) {
        values = keys + lines(4 * wide * depth);
        scores = values + lines(4 * tokens * across);
        weights = scores + lines(4 * kRows * wide);
        queries = weights + lines(4 * kRows * tokens);
        mixed = queries + lines(4 * kRows * depth);
        bytes = mixed + lines(4 * kRows * across);
    }
};

// Named variables: arrays of vectors would be kept in memory.
#define NX_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define NX_START(r) [[maybe_unused]] Vec sum##r##0{}, sum##r##1{}, sum##r##2{}, sum##r##3{};
#define NX_STEP(r)                                                      \
    same = one(x + r * stride_x + s * kPair);                           \
    accumulate(sum##r##0, w0, same);                                    \
    if constexpr (kCount > 1) accumulate(sum##r##1, w1, same);          \
    if constexpr (kCount > 2) accumulate(sum##r##2, w2, same);          \
    if constexpr (kCount > 3) accumulate(sum##r##3, w3, same);
#define NX_END(r)                                                       \
    store(out + r * stride, sum##r##0);                                 \
    if constexpr (kCount > 1) store(out + r * stride + kLanes, sum##r##1);     \
    if constexpr (kCount > 2) store(out + r * stride + 2 * kLanes, sum##r##2); \
    if constexpr (kCount > 3) store(out + r * stride + 3 * kLanes, sum##r##3);

// out [kRows,kCount * kLanes] = x [kRows,steps * pair] times a panel [steps,kColumns,pair].
template <int kPair, int kCount, class Held>
void meet(const Held* x, int64_t stride_x, int64_t steps, const Held* panel, float* out, int64_t stride) {
    NX_EACH_ROW(NX_START)
    for (int64_t s = 0; s < steps; ++s, panel += kColumns * kPair) {
        constexpr int kNext = kLanes * kPair;
        const auto w0 = several(panel);
        [[maybe_unused]] auto w1 = w0, w2 = w0, w3 = w0;
        if constexpr (kCount > 1) w1 = several(panel + kNext);
        if constexpr (kCount > 2) w2 = several(panel + 2 * kNext);
        if constexpr (kCount > 3) w3 = several(panel + 3 * kNext);
        auto same = w0;
        NX_EACH_ROW(NX_STEP)
    }
    NX_EACH_ROW(NX_END)
}

// x by the first `steps` of panels of `deep` each, only the vectors that hold some of the `columns` columns.
template <int kPair, class Held>
void product(const Held* x, int64_t stride_x, int64_t steps, const Held* panels, int64_t deep, int64_t columns, float* out,
             int64_t stride) {
    for (int64_t c = 0; c < columns; c += kColumns, panels += deep * kColumns * kPair) {
        const int64_t count = over(std::min<int64_t>(columns - c, kColumns), kLanes);
        if (count == 1) meet<kPair, 1>(x, stride_x, steps, panels, out + c, stride);
        else if (count == 2) meet<kPair, 2>(x, stride_x, steps, panels, out + c, stride);
        else if constexpr (kVectors > 2) {
            if (count == 3) meet<kPair, 3>(x, stride_x, steps, panels, out + c, stride);
            else meet<kPair, 4>(x, stride_x, steps, panels, out + c, stride);
        }
    }
}

// Rows of T [count,d] as columns: panels [d / pair,kColumns,pair], zeros where there is no row or number.
template <class T, class Held, int kPair>
void turn(const T* rows, int64_t stride, int64_t count, int64_t d, Held* panels) {
    const int64_t steps = over(d, kPair);
    for (int64_t c0 = 0; c0 < count; c0 += kColumns, panels += steps * kColumns * kPair) {
        const int64_t here = std::min<int64_t>(kColumns, count - c0);
#if defined(__AVX512F__)
        if constexpr (sizeof(T) * kPair == 4) {
            if (d % (16 * kPair) == 0) {  // 16 rows of 16 words at a time
                for (int64_t g = 0; g < over(here, 16) * 16; g += 16)
                    for (int64_t s = 0; s < steps; s += 16) {
                        __m512i words[16];
                        for (int r = 0; r < 16; ++r)
                            words[r] = g + r < here ? _mm512_loadu_si512(rows + (c0 + g + r) * stride + s * kPair)
                                                    : _mm512_setzero_si512();
                        transpose(words);
                        for (int q = 0; q < 16; ++q)
                            _mm512_storeu_si512(panels + ((s + q) * kColumns + g) * kPair, words[q]);
                    }
                continue;
            }
        }
#endif
        std::memset(panels, 0, steps * kColumns * kPair * sizeof(Held));
        for (int64_t c = 0; c < here; ++c)
            for (int64_t i = 0; i < d; ++i)
                keep(panels + (i / kPair * kColumns + c) * kPair + i % kPair, rows[(c0 + c) * stride + i]);
    }
}

#if defined(__AVX512BF16__)
// a0 b0 a1 b1 ... of two rows of n numbers, zeros for a second row that there is not and up to kColumns.
inline void interleave(const bf16* a, const bf16* b, int64_t n, bf16* out) {
    __m512i places = _mm512_setzero_si512();
    for (int i = 0; i < 16; ++i) places = _mm512_mask_set1_epi32(places, 1u << i, i | (32 + i) << 16);
    for (int64_t i = 0; i < kColumns; i += 32, out += 64) {
        const __mmask32 there = n - i >= 32 ? 0xffffffffu : n > i ? (1u << (n - i)) - 1 : 0;
        const __m512i first = _mm512_maskz_loadu_epi16(there, a + i);
        const __m512i second = _mm512_maskz_loadu_epi16(b ? there : 0, b + i);
        _mm512_storeu_si512(out, _mm512_permutex2var_epi16(first, places, second));
        _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(first, _mm512_add_epi16(places, _mm512_set1_epi16(16)), second));
    }
}
#endif

// Rows of T [count,d] as they are: panels of columns [count / pair,kColumns,pair], zeros where there is none.
template <class T, class Held, int kPair>
void line_up(const T* rows, int64_t stride, int64_t count, int64_t d, Held* panels) {
    const int64_t steps = over(count, kPair);
    for (int64_t i0 = 0; i0 < d; i0 += kColumns) {
        const int64_t here = std::min<int64_t>(kColumns, d - i0);
        for (int64_t s = 0; s < steps; ++s, panels += kColumns * kPair) {
            const T* row = rows + kPair * s * stride + i0;
            if constexpr (kPair == 2)
                interleave(row, kPair * (s + 1) <= count ? row + stride : nullptr, here, panels);
            else
                for (int64_t i = 0; i < kColumns; ++i) panels[i] = i < here ? number(row[i]) : 0.0f;
        }
    }
}

// 2^x for x <= 0, no less than 2^-125. NaN stays NaN.
template <int kPair>
inline Vec power(Vec x) {
    const Vec held = x < -125.0f ? splat(-125.0f) : x;
    if constexpr (kPair == 2)
        return exp2_by(kExp2Short, held);
    else
        return exp2_by(kExp2, held);
}

// weights = e^(scale * scores + bias - their maximum), n of them and next to nothing up to whole vectors; returns their sum.
template <int kPair, class T, class Held>
float weigh(float* scores, const T* bias, int64_t n, float scale, Held* weights) {
    constexpr float kLog = 1.44269504f;  // e^x = 2^(x log2 e)
    const Vec least = splat(-std::numeric_limits<float>::infinity());
    VecInt lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    Vec top = least, total{};
    for (int64_t i = 0; i < n; i += kLanes) {  // the end in whole vectors too: a part stored could not be loaded at once
        const int32_t left = static_cast<int32_t>(n - i);
        Vec v = load(scores + i) * (scale * kLog);
        if (bias) v += (left < kLanes ? load_part(bias + i, left) : load(bias + i)) * kLog;
        if (left < kLanes) v = lane < left ? v : least;
        store(scores + i, v);
        top = v > top ? v : top;
    }
    const float peak = top_of(top);
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = power<kPair>(load(scores + i) - peak);
        total += v;
        store(weights + i, v);
    }
    return sum(total);
}

// Asks for rows [count,d] that will be wanted soon: their strides are long, which no processor foresees.
template <class T>
void fetch(const T* rows, int64_t stride, int64_t count, int64_t d) {
    for (int64_t r = 0; r < count; ++r, rows += stride)
        for (int64_t i = 0; i < d; i += 64 / sizeof(T)) __builtin_prefetch(rows + i, 0, 2);
}

template <class T>
void run(const nx_attention_args& a) {
    typedef typename Operand<T>::Held Held;
    constexpr int kPair = Operand<T>::kPair;
    const Plan at(a.T, a.d);
    const int64_t steps = over(a.d, kPair);
#pragma omp parallel
    {
#if defined(_OPENMP)
        const int64_t thread = omp_get_thread_num();
#else
        const int64_t thread = 0;
#endif
        char* own = static_cast<char*>(a.scratch) + thread * at.bytes;
        Held *keys = reinterpret_cast<Held*>(own + at.keys), *values = reinterpret_cast<Held*>(own + at.values);
        Held *queries = reinterpret_cast<Held*>(own + at.queries), *weights = reinterpret_cast<Held*>(own + at.weights);
        float *scores = reinterpret_cast<float*>(own + at.scores), *mixed = reinterpret_cast<float*>(own + at.mixed);
        std::memset(own + at.weights, 0, at.mixed - at.weights);  // rows that there are not; the end of an odd d
        const auto keys_of = [&](int64_t task) { return static_cast<const T*>(a.k) + task / a.H * a.k_n + task % a.H * a.k_h; };
        const auto values_of = [&](int64_t task) { return static_cast<const T*>(a.v) + task / a.H * a.v_n + task % a.H * a.v_h; };
        const auto queries_of = [&](int64_t task) { return static_cast<const T*>(a.q) + task / a.H * a.q_n + task % a.H * a.q_h; };
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < a.n * a.H; ++task) {
            const int64_t item = task / a.H, h = task % a.H;
            turn<T, Held, kPair>(keys_of(task), a.k_t, a.T, a.d, keys);
            line_up<T, Held, kPair>(values_of(task), a.v_t, a.T, a.d, values);
            if (task + 1 < a.n * a.H) {
                fetch(keys_of(task + 1), a.k_t, a.T, a.d);
                fetch(values_of(task + 1), a.v_t, a.T, a.d);
                fetch(queries_of(task + 1), a.q_m, a.M, a.d);
            }
            for (int64_t m = 0; m < a.M; m += kRows) {
                const int64_t rows = std::min<int64_t>(kRows, a.M - m);
                for (int64_t r = 0; r < rows; ++r) {
                    const T* q = queries_of(task) + (m + r) * a.q_m;
                    if constexpr (sizeof(T) == sizeof(Held))
                        std::memcpy(queries + r * at.depth, q, a.d * sizeof(T));
                    else
                        for (int64_t i = 0; i < a.d; ++i) keep(queries + r * at.depth + i, q[i]);
                }
                const int64_t last = a.sees ? std::min(a.T, a.sees + m + rows - 1) : a.T;  // keys that one of these sees
                product<kPair>(queries, at.depth, steps, keys, steps, last, scores, at.wide);
                float sums[kRows];
                for (int64_t r = 0; r < rows; ++r) {
                    const T* bias = static_cast<const T*>(a.bias);
                    if (bias) bias += item % a.w * a.bias_w + h * a.bias_h + (m + r) * a.bias_m;
                    const int64_t count = a.sees ? std::min(a.T, a.sees + m + r) : a.T;
                    Held* row = weights + r * at.tokens;
                    sums[r] = weigh<kPair>(scores + r * at.wide, bias, count, static_cast<float>(a.scale), row);
                    for (int64_t i = over(count, kLanes) * kLanes; i < last; i += kLanes) store(row + i, Vec{});
                }
                product<kPair>(weights, at.tokens, over(last, kPair), values, over(a.T, kPair), a.d, mixed, at.across);
                for (int64_t r = 0; r < rows; ++r) {
                    T* out = static_cast<T*>(a.out) + item * a.out_n + h * a.out_h + (m + r) * a.out_m;
                    const float* from = mixed + r * at.across;
                    const Vec share = splat(1.0f / sums[r]);
                    each_vector(a.d, [&](int64_t i, auto get, auto put) { put(out + i, get(from + i) * share); });
                }
            }
        }
    }
}

}  // namespace

int64_t nx::NX_ISA::attention_scratch(int64_t T, int64_t d) {
#if defined(_OPENMP)
    return Plan(T, d).bytes * omp_get_max_threads();
#else
    return Plan(T, d).bytes;
#endif
}

void nx::NX_ISA::attention(const nx_attention_args& args) {
    args.dtype == NX_BF16 ? run<bf16>(args) : run<float>(args);
}
