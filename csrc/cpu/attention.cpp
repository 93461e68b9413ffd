// attention: the keys and values of a head are packed into panels for the dot product; then a microkernel
// multiplies six queries at a time with them. The scores stay in the L1 cache, in fp32.
#include <algorithm>
#include <limits>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "simd.h"

namespace {

// Size of the microkernel: 24 accumulators, 4 panel vectors and a broadcast element fit into the registers of
// AVX-512, 12 accumulators into those of the lower levels.
constexpr int kRows = 6;
constexpr int kVectors = kLanes >= 16 ? 4 : 2;
constexpr int kColumns = kVectors * kLanes;  // of a panel

// Operands of the products: pairs of bf16 if the CPU has an instruction for them, otherwise fp32.
template <class T>
struct Operand {
    typedef float Element;
    static constexpr int kPair = 1;
};
inline Vec load_panel(const float* p) { return load(p); }
inline Vec broadcast(const float* p) { return splat(*p); }
inline void accumulate(Vec& sum, Vec w, Vec x) { sum += w * x; }

#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
    typedef bf16 Element;
    static constexpr int kPair = 2;
};
inline __m512i load_panel(const bf16* p) { return _mm512_loadu_si512(p); }
inline __m512i broadcast(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return _mm512_set1_epi32(pair);
}
// Instead of the intrinsic, around which GCC 12 spills every accumulator.
inline void accumulate(Vec& sum, __m512i w, __m512i x) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}
#endif

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void convert(float* p, float x) { *p = x; }
inline void convert(float* p, bf16 x) { *p = to_float(x); }
[[maybe_unused]] inline void convert(bf16* p, bf16 x) { *p = x; }

inline int64_t ceil_div(int64_t n, int64_t step) { return (n + step - 1) / step; }
inline int64_t align_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }  // to cache lines

// Layout of a thread's workspace, in bytes. Sized for fp32 operands; bf16 operands fill half of it.
struct Layout {
    int64_t even_d, vector_T, panel_T, panel_d;  // d and T, rounded up to pairs, vectors or panels
    int64_t keys = 0, values, scores, weights, queries, context, bytes;

    Layout(int64_t T, int64_t d)
        : even_d(ceil_div(d, 2) * 2),
          vector_T(ceil_div(T, kLanes) * kLanes),
          panel_T(ceil_div(T, kColumns) * kColumns),
          panel_d(ceil_div(d, kColumns) * kColumns) {
        values = keys + align_up(4 * panel_T * even_d);
        scores = values + align_up(4 * vector_T * panel_d);
        weights = scores + align_up(4 * kRows * panel_T);
        queries = weights + align_up(4 * kRows * vector_T);
        context = queries + align_up(4 * kRows * even_d);
        bytes = context + align_up(4 * kRows * panel_d);
    }
};

// Named variables, because the compiler would keep an array of vectors in memory.
#define NX_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define NX_START(r) [[maybe_unused]] Vec sum##r##0 {}, sum##r##1 {}, sum##r##2 {}, sum##r##3 {};
#define NX_STEP(r)                                                \
    element = broadcast(x + r * stride_x + s * kPair);            \
    accumulate(sum##r##0, w0, element);                           \
    if constexpr (kCount > 1) accumulate(sum##r##1, w1, element); \
    if constexpr (kCount > 2) accumulate(sum##r##2, w2, element); \
    if constexpr (kCount > 3) accumulate(sum##r##3, w3, element);
#define NX_END(r)                                                              \
    store(out + r * stride, sum##r##0);                                        \
    if constexpr (kCount > 1) store(out + r * stride + kLanes, sum##r##1);     \
    if constexpr (kCount > 2) store(out + r * stride + 2 * kLanes, sum##r##2); \
    if constexpr (kCount > 3) store(out + r * stride + 3 * kLanes, sum##r##3);

// out [kRows,kCount * kLanes] = x [kRows,steps * kPair] times a panel [steps,kColumns,kPair].
template <int kPair, int kCount, class Element>
void microkernel(const Element* x, int64_t stride_x, int64_t steps, const Element* panel, float* out,
                 int64_t stride) {
    NX_EACH_ROW(NX_START)
    for (int64_t s = 0; s < steps; ++s, panel += kColumns * kPair) {
        constexpr int kNext = kLanes * kPair;
        const auto w0 = load_panel(panel);
        [[maybe_unused]] auto w1 = w0, w2 = w0, w3 = w0;
        if constexpr (kCount > 1) w1 = load_panel(panel + kNext);
        if constexpr (kCount > 2) w2 = load_panel(panel + 2 * kNext);
        if constexpr (kCount > 3) w3 = load_panel(panel + 3 * kNext);
        auto element = w0;
        NX_EACH_ROW(NX_STEP)
    }
    NX_EACH_ROW(NX_END)
}

// out [kRows,columns] = x times panels [panel,panel_steps,kColumns,kPair], of which the first `steps` are
// used. Computes only the vectors that contain one of the `columns` columns.
template <int kPair, class Element>
void multiply(const Element* x, int64_t stride_x, int64_t steps, const Element* panels, int64_t panel_steps,
              int64_t columns, float* out, int64_t stride) {
    for (int64_t c = 0; c < columns; c += kColumns, panels += panel_steps * kColumns * kPair) {
        const int64_t count = ceil_div(std::min<int64_t>(columns - c, kColumns), kLanes);
        if (count == 1)
            microkernel<kPair, 1>(x, stride_x, steps, panels, out + c, stride);
        else if (count == 2)
            microkernel<kPair, 2>(x, stride_x, steps, panels, out + c, stride);
        else if constexpr (kVectors > 2) {
            if (count == 3)
                microkernel<kPair, 3>(x, stride_x, steps, panels, out + c, stride);
            else
                microkernel<kPair, 4>(x, stride_x, steps, panels, out + c, stride);
        }
    }
}

// Packs rows of T [count,d], transposed, into panels [panel,d / kPair,kColumns,kPair], padded with zeros.
template <class T, class Element, int kPair>
void pack_transposed(const T* rows, int64_t stride, int64_t count, int64_t d, Element* panels) {
    const int64_t steps = ceil_div(d, kPair);
    for (int64_t c0 = 0; c0 < count; c0 += kColumns, panels += steps * kColumns * kPair) {
        const int64_t valid = std::min<int64_t>(kColumns, count - c0);
#if defined(__AVX512F__)
        if constexpr (sizeof(T) * kPair == 4) {
            if (d % (16 * kPair) == 0) {  // blocks of 16 rows by 16 words
                for (int64_t g = 0; g < ceil_div(valid, 16) * 16; g += 16)
                    for (int64_t s = 0; s < steps; s += 16) {
                        __m512i words[16];
                        for (int r = 0; r < 16; ++r)
                            words[r] = g + r < valid
                                           ? _mm512_loadu_si512(rows + (c0 + g + r) * stride + s * kPair)
                                           : _mm512_setzero_si512();
                        transpose(words);
                        for (int q = 0; q < 16; ++q)
                            _mm512_storeu_si512(panels + ((s + q) * kColumns + g) * kPair, words[q]);
                    }
                continue;
            }
        }
#endif
        std::memset(panels, 0, steps * kColumns * kPair * sizeof(Element));
        for (int64_t c = 0; c < valid; ++c)
            for (int64_t i = 0; i < d; ++i)
                convert(panels + (i / kPair * kColumns + c) * kPair + i % kPair, rows[(c0 + c) * stride + i]);
    }
}

#if defined(__AVX512BF16__)
// out [kColumns,2] = a0 b0 a1 b1 ... of two rows of n elements, padded with zeros. b may be null: zeros.
inline void interleave(const bf16* a, const bf16* b, int64_t n, bf16* out) {
    __m512i low = _mm512_setzero_si512();  // indices of the first 16 pairs
    for (int i = 0; i < 16; ++i) low = _mm512_mask_set1_epi32(low, 1u << i, i | (32 + i) << 16);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < kColumns; i += 32, out += 64) {
        const __mmask32 mask = n - i >= 32 ? 0xffffffffu : n > i ? (1u << (n - i)) - 1 : 0;
        const __m512i first = _mm512_maskz_loadu_epi16(mask, a + i);
        const __m512i second = _mm512_maskz_loadu_epi16(b ? mask : 0, b + i);
        _mm512_storeu_si512(out, _mm512_permutex2var_epi16(first, low, second));
        _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(first, high, second));
    }
}
#endif

// Packs rows of T [count,d], not transposed, into panels [panel,count / kPair,kColumns,kPair], padded with
// zeros.
template <class T, class Element, int kPair>
void pack(const T* rows, int64_t stride, int64_t count, int64_t d, Element* panels) {
    const int64_t steps = ceil_div(count, kPair);
    for (int64_t i0 = 0; i0 < d; i0 += kColumns) {
        const int64_t valid = std::min<int64_t>(kColumns, d - i0);
        for (int64_t s = 0; s < steps; ++s, panels += kColumns * kPair) {
            const T* row = rows + kPair * s * stride + i0;
            if constexpr (kPair == 2)
                interleave(row, kPair * (s + 1) <= count ? row + stride : nullptr, valid, panels);
            else
                for (int64_t i = 0; i < kColumns; ++i) panels[i] = i < valid ? to_float(row[i]) : 0.0f;
        }
    }
}

// 2^x for x <= 0, clamped to at least 2^-125. NaN stays NaN.
template <int kPair>
inline Vec exp2_clamped(Vec x) {
    const Vec clamped = x < -125.0f ? splat(-125.0f) : x;
    if constexpr (kPair == 2)
        return exp2_polynomial(kExp2Fast, clamped);
    else
        return exp2_polynomial(kExp2, clamped);
}

// weights [n] = e^(x - max x) with x = scale * scores + bias; returns their sum. The lanes of the last vector
// beyond n become almost 0 (2^-125). Overwrites the scores.
template <int kPair, class T, class Element>
float softmax_weights(float* scores, const T* bias, int64_t n, float scale, Element* weights) {
    constexpr float kLog2E = 1.44269504f;  // e^x = 2^(x log2 e)
    const Vec lowest = splat(-std::numeric_limits<float>::infinity());
    VecInt lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    Vec top = lowest, total{};
    // The last vector is stored whole too: loading it right after a partial store would stall.
    for (int64_t i = 0; i < n; i += kLanes) {
        const int32_t remaining = static_cast<int32_t>(n - i);
        Vec v = load(scores + i) * (scale * kLog2E);
        if (bias) v += (remaining < kLanes ? load_part(bias + i, remaining) : load(bias + i)) * kLog2E;
        if (remaining < kLanes) v = lane < remaining ? v : lowest;
        store(scores + i, v);
        top = v > top ? v : top;
    }
    const float peak = max_lane(top);
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = exp2_clamped<kPair>(load(scores + i) - peak);
        total += v;
        store(weights + i, v);
    }
    return sum(total);
}

// Prefetches rows [count,d]: their strides are too long for the hardware prefetcher.
template <class T>
void prefetch(const T* rows, int64_t stride, int64_t count, int64_t d) {
    for (int64_t r = 0; r < count; ++r, rows += stride)
        for (int64_t i = 0; i < d; i += 64 / sizeof(T)) __builtin_prefetch(rows + i, 0, 2);
}

template <class T>
void run(const nx_attention_args& a) {
    typedef typename Operand<T>::Element Element;
    constexpr int kPair = Operand<T>::kPair;
    const Layout layout(a.T, a.d);
    const int64_t steps = ceil_div(a.d, kPair);
#pragma omp parallel
    {
#if defined(_OPENMP)
        const int64_t thread = omp_get_thread_num();
#else
        const int64_t thread = 0;
#endif
        char* workspace = static_cast<char*>(a.scratch) + thread * layout.bytes;
        Element* keys = reinterpret_cast<Element*>(workspace + layout.keys);
        Element* values = reinterpret_cast<Element*>(workspace + layout.values);
        Element* queries = reinterpret_cast<Element*>(workspace + layout.queries);
        Element* weights = reinterpret_cast<Element*>(workspace + layout.weights);
        float* scores = reinterpret_cast<float*>(workspace + layout.scores);
        float* context = reinterpret_cast<float*>(workspace + layout.context);
        // Padding rows, and the padding of an odd d.
        std::memset(workspace + layout.weights, 0, layout.context - layout.weights);
        // A task is a head of an item: task = item * H + head.
        const auto head_of = [&](const void* tensor, int64_t task, int64_t stride_n, int64_t stride_h) {
            return static_cast<const T*>(tensor) + task / a.H * stride_n + task % a.H * stride_h;
        };
        const auto keys_of = [&](int64_t task) { return head_of(a.k, task, a.k_n, a.k_h); };
        const auto values_of = [&](int64_t task) { return head_of(a.v, task, a.v_n, a.v_h); };
        const auto queries_of = [&](int64_t task) { return head_of(a.q, task, a.q_n, a.q_h); };
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < a.n * a.H; ++task) {
            const int64_t item = task / a.H, h = task % a.H;
            pack_transposed<T, Element, kPair>(keys_of(task), a.k_t, a.T, a.d, keys);
            pack<T, Element, kPair>(values_of(task), a.v_t, a.T, a.d, values);
            if (task + 1 < a.n * a.H) {
                prefetch(keys_of(task + 1), a.k_t, a.T, a.d);
                prefetch(values_of(task + 1), a.v_t, a.T, a.d);
                prefetch(queries_of(task + 1), a.q_m, a.M, a.d);
            }
            for (int64_t m = 0; m < a.M; m += kRows) {
                const int64_t rows = std::min<int64_t>(kRows, a.M - m);
                for (int64_t r = 0; r < rows; ++r) {
                    const T* q = queries_of(task) + (m + r) * a.q_m;
                    if constexpr (sizeof(T) == sizeof(Element))
                        std::memcpy(queries + r * layout.even_d, q, a.d * sizeof(T));
                    else
                        for (int64_t i = 0; i < a.d; ++i) convert(queries + r * layout.even_d + i, q[i]);
                }
                // Keys that at least one of these queries attends to.
                const int64_t last = a.causal_offset ? std::min(a.T, a.causal_offset + m + rows - 1) : a.T;
                multiply<kPair>(queries, layout.even_d, steps, keys, steps, last, scores, layout.panel_T);
                float sums[kRows];
                for (int64_t r = 0; r < rows; ++r) {
                    const T* bias = static_cast<const T*>(a.bias);
                    if (bias) bias += item % a.w * a.bias_w + h * a.bias_h + (m + r) * a.bias_m;
                    const int64_t count = a.causal_offset ? std::min(a.T, a.causal_offset + m + r) : a.T;
                    Element* row = weights + r * layout.vector_T;
                    sums[r] = softmax_weights<kPair>(scores + r * layout.panel_T, bias, count,
                                                     static_cast<float>(a.scale), row);
                    for (int64_t i = ceil_div(count, kLanes) * kLanes; i < last; i += kLanes)
                        store(row + i, Vec{});
                }
                multiply<kPair>(weights, layout.vector_T, ceil_div(last, kPair), values, ceil_div(a.T, kPair),
                                a.d, context, layout.panel_d);
                for (int64_t r = 0; r < rows; ++r) {
                    T* out = static_cast<T*>(a.out) + item * a.out_n + h * a.out_h + (m + r) * a.out_m;
                    const float* context_row = context + r * layout.panel_d;
                    const Vec inverse = splat(1.0f / sums[r]);
                    for_each_vector(a.d, [&](int64_t i, auto get, auto put) {
                        put(out + i, get(context_row + i) * inverse);
                    });
                }
            }
        }
    }
}

}  // namespace

int64_t nx::NX_ISA::attention_scratch(int64_t T, int64_t d) {
#if defined(_OPENMP)
    return Layout(T, d).bytes * omp_get_max_threads();
#else
    return Layout(T, d).bytes;
#endif
}

void nx::NX_ISA::attention(const nx_attention_args& args) {
    args.dtype == NX_BF16 ? run<bf16>(args) : run<float>(args);
}
