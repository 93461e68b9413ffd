// quantized_linear: many rows times an int8 or int4 matrix. First the rows are quantised, to 8 bits with VNNI
// and to 16 bits without. Then each thread claims panels of the matrix: it packs a panel for the dot product
// instruction and multiplies all rows by it.
#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "quantized.h"

namespace {

constexpr int kPanel = 64;          // columns of the result per task
constexpr int64_t kMaxBlock = 256;  // most elements of a row of x that share a scale

#if defined(__AVX512VNNI__)
using Integer = int8_t;
#else
using Integer = int16_t;
#endif

// Elements of a row of x that share a scale. If a row of the weights has one scale, as many as the caller
// allows: fewer scales take less time.
int64_t block_of([[maybe_unused]] const nx_quantized_linear_args& a) {
#if defined(__AVX512VNNI__)
    if (a.precision == NX_INT8_ROWS)
        for (const int64_t block : {kMaxBlock, kMaxBlock / 2})
            if (block <= a.run && a.K % block == 0) return block;
#endif
    return kBlock;
}

struct Workspace {
    nx::Activation x;
    char* threads;         // the threads' own memory
    int64_t thread_bytes;  // of each
};

int64_t align_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }  // to cache lines

int64_t activation_bytes(int64_t M, int64_t K) {
    return align_up(M * K * sizeof(Integer)) + align_up(M * (K / kBlock) * 4) + align_up(M * (K / 32) * 4);
}

// A packed panel and its scales or, without VNNI, the fp32 products of all rows.
int64_t thread_bytes(int64_t M, int64_t K) {
    return align_up(std::max(kPanel * K + kPanel * (K / 32) * 4, M * kPanel * 4));
}

Workspace workspace_of(const nx_quantized_linear_args& a) {
    char* next = static_cast<char*>(a.scratch);
    Workspace s{};
    s.x.data = next;
    next += align_up(a.M * a.K * sizeof(Integer));
    s.x.scales = reinterpret_cast<float*>(next);
    next += align_up(a.M * (a.K / kBlock) * 4);
    s.x.sums = reinterpret_cast<int32_t*>(next);
    next += align_up(a.M * (a.K / 32) * 4);
    s.threads = next;
    s.thread_bytes = thread_bytes(a.M, a.K);
    return s;
}

template <class T>
void quantize_row(const nx_quantized_linear_args& a, const Workspace& s, int64_t m, int64_t block) {
    const T* x = static_cast<const T*>(a.x) + m * a.stride_x;
    for (int64_t j = 0; j < a.K / block; ++j) {
        float values[kMaxBlock];
        for (int64_t i = 0; i < block; i += kLanes) store(values + i, load(x + j * block + i));
        const int64_t offset = m * a.K + j * block;
        s.x.scales[m * (a.K / block) + j] =
            quantize(values, block, static_cast<Integer*>(s.x.data) + offset, s.x.sums + offset / 32);
    }
}

template <class T>
inline Vec activate(Vec x, int64_t activation) {
    if constexpr (sizeof(T) == sizeof(bf16)) {
        if (activation == NX_GELU) return fast_gelu(x);
        if (activation == NX_SILU) return fast_silu(x);
    }
    switch (activation) {
        case NX_RELU:
            return x > 0.0f ? x : (x != x ? x : Vec{});
        case NX_SILU:
            return x / (1.0f + exp(-x));
        case NX_GELU:
            return gelu(x);
        case NX_GELU_TANH: {  // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
            const Vec u = 1.5957691216f * (x + 0.044715f * x * x * x);
            return x / (1.0f + exp(-u));
        }
        default:
            return x;
    }
}

// Applies scales, bias and activation to `rows` rows of products, then stores them, adds them to or
// multiplies them into out, from row m and column n0 on.
template <class T>
void epilogue(const nx_quantized_linear_args& a, int64_t m, int64_t rows, int64_t n0,
              float (*products)[kPanel], const float* scales) {
    const int64_t n = std::min<int64_t>(kPanel, a.N - n0);
    for (int64_t r = 0; r < rows; ++r) {
        float* p = products[r];
        for_each_vector(n, [&](int64_t i, auto get, auto put) {
            const Vec v = scales ? get(p + i) * get(scales + n0 + i) : get(p + i);
            put(p + i, a.bias ? v + get(a.bias + n0 + i) : v);
        });
    }
    if (a.activation)
        for (int64_t r = 0; r < rows; ++r)
            for (int i = 0; i < kPanel; i += kLanes)
                store(products[r] + i, activate<T>(load(products[r] + i), a.activation));
    for (int64_t r = 0; r < rows; ++r) {
        const float* p = products[r];
        T* out = static_cast<T*>(a.out) + (m + r) * a.stride_out + n0;
        if (a.combine == NX_STORE)
            for_each_vector(n, [&](int64_t i, auto get, auto put) { put(out + i, get(p + i)); });
        else if (a.combine == NX_ADD)
            for_each_vector(n,
                            [&](int64_t i, auto get, auto put) { put(out + i, get(out + i) + get(p + i)); });
        else
            for_each_vector(n,
                            [&](int64_t i, auto get, auto put) { put(out + i, get(out + i) * get(p + i)); });
    }
}

#if defined(__AVX512VNNI__)

// Columns that share a weight scale (0: all of them), and the zero point of the unsigned weights.
constexpr int64_t group_of(int64_t precision) {
    return precision == NX_INT8 ? kBlock : precision == NX_INT4 ? 32 : 0;
}
constexpr int zero_point_of(int64_t precision) { return precision == NX_INT4 ? 8 : 128; }

// Packs rows [n0, n0 + 64) of the matrix, as unsigned integers, into panel [K/4][64][4] and the scales of
// groups into scales [K/group][64]. Rows past the end become 0.
template <int64_t kPrecision>
inline void pack(const nx_quantized_linear_args& a, int64_t n0, uint8_t* panel, float* scales) {
    constexpr bool int4 = kPrecision == NX_INT4;
    const int64_t count = std::min<int64_t>(kPanel, a.N - n0);
    for (int g = 0; g < kPanel; g += 16)
        for (int64_t j = 0; j < a.K / kBlock; ++j) {
            __m512i rows[16];
            for (int r = 0; r < 16; ++r) {
                const int64_t n = n0 + g + r;
                if (g + r >= count) {
                    rows[r] = _mm512_setzero_si512();
                } else if (int4) {
                    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                        static_cast<const uint8_t*>(a.w.data) + n * (a.K / 2) + j * 32));
                    const __m256i low = _mm256_set1_epi8(15);
                    rows[r] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(bytes, low)),
                                                 _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), 1);
                } else {
                    rows[r] = _mm512_xor_si512(
                        _mm512_loadu_si512(static_cast<const int8_t*>(a.w.data) + n * a.K + j * kBlock),
                        _mm512_set1_epi8(-128));
                }
            }
            transpose(rows);
            for (int q = 0; q < 16; ++q) _mm512_store_si512(panel + ((j * 16 + q) * kPanel + g) * 4, rows[q]);
        }
    if constexpr (group_of(kPrecision) != 0)
        for (int64_t j = 0, groups = a.K / group_of(kPrecision); j < groups; ++j)
            for (int n = 0; n < kPanel; ++n)
                scales[j * kPanel + n] =
                    n < count ? bf16_to_float(static_cast<const uint16_t*>(a.w.scales)[(n0 + n) * groups + j])
                              : 0.0f;
}

constexpr int kRows = 6;  // 24 accumulators, 4 weights and an activation fit into the registers

// Named variables, because the compiler would keep an array of vectors in memory. A row past the end repeats
// the last row.
#define NX_EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define NX_START(r)                                                                                       \
    __m512i sum##r##0 = _mm512_set1_epi32(-zero_point_of(kPrecision) * block_sum(sums[r], j, steps / 8)); \
    __m512i sum##r##1 = sum##r##0, sum##r##2 = sum##r##0, sum##r##3 = sum##r##0;
#define NX_STEP(r)                            \
    std::memcpy(&four_bytes, data[r] + k, 4); \
    element = _mm512_set1_epi32(four_bytes);  \
    accumulate(sum##r##0, weight0, element);  \
    accumulate(sum##r##1, weight1, element);  \
    accumulate(sum##r##2, weight2, element);  \
    accumulate(sum##r##3, weight3, element);
#define NX_END(r)                                                             \
    scale = _mm512_set1_ps(row_scales[r][kPrecision == NX_INT4 ? j / 2 : j]); \
    add(products[r], sum##r##0, kGroup ? scale * group[0] : scale);           \
    add(products[r] + 16, sum##r##1, kGroup ? scale * group[1] : scale);      \
    add(products[r] + 32, sum##r##2, kGroup ? scale * group[2] : scale);      \
    add(products[r] + 48, sum##r##3, kGroup ? scale * group[3] : scale);

// Instead of the intrinsic, around which GCC 12 spills every accumulator.
inline void accumulate(__m512i& sum, __m512i weight, __m512i activation) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(activation));
}

inline void add(float* p, __m512i product, __m512 factor) {
    _mm512_store_ps(p, _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), factor, _mm512_load_ps(p)));
}

// Prefetches a range of memory, a few cache lines per call.
struct Prefetcher {
    const char *next, *end;
    int64_t lines_per_call;
    void prefetch() {
        for (int64_t i = 0; i < lines_per_call && next < end; ++i, next += 64)
            _mm_prefetch(next, _MM_HINT_T1);
    }
};

// Sum of block j of `count` elements.
inline int32_t block_sum(const int32_t* x, int64_t j, int64_t count) {
    int32_t total = 0;
    for (int64_t i = j * count; i < (j + 1) * count; ++i) total += x[i];
    return total;
}

// products [kRows][64] = kRows rows of x, from row m on, times a panel. Sums of a block stay in registers,
// sums over blocks in the L1 cache.
template <int64_t kPrecision>
void microkernel(const nx::Activation& x, int64_t m, int64_t M, int64_t K, const uint8_t* panel,
                 const float* scales, int64_t block, Prefetcher& next_panel, float (*products)[kPanel]) {
    constexpr int64_t kGroup = group_of(kPrecision);
    const int64_t steps = (kGroup ? kGroup : block) / 4;  // dot products per scale
    const int8_t* data[kRows];
    const int32_t* sums[kRows];
    const float* row_scales[kRows];
    for (int r = 0; r < kRows; ++r) {
        const int64_t row = std::min(m + r, M - 1);
        data[r] = static_cast<const int8_t*>(x.data) + row * K;
        sums[r] = x.sums + row * (K / 32);
        row_scales[r] = x.scales + row * (K / block);
    }
    std::memset(products, 0, kRows * kPanel * sizeof(float));
    const uint8_t* w = panel;
    for (int64_t j = 0; j < K / (4 * steps); ++j) {
        // The next rows: too short for the hardware prefetcher.
        for (int r = 0; r < kRows; ++r)
            for (int64_t i = 0; i < 4 * steps; i += 64)
                _mm_prefetch(reinterpret_cast<const char*>(data[r] + kRows * K + j * 4 * steps + i),
                             _MM_HINT_T0);
        next_panel.prefetch();
        NX_EACH_ROW(NX_START)
        for (int64_t k = j * 4 * steps; k < (j + 1) * 4 * steps; k += 4, w += kPanel * 4) {
            const __m512i weight0 = _mm512_load_si512(w), weight1 = _mm512_load_si512(w + 64);
            const __m512i weight2 = _mm512_load_si512(w + 128), weight3 = _mm512_load_si512(w + 192);
            int32_t four_bytes;
            __m512i element;
            NX_EACH_ROW(NX_STEP)
        }
        __m512 group[4] = {}, scale;
        if (kGroup)
            for (int c = 0; c < 4; ++c) group[c] = _mm512_load_ps(scales + j * kPanel + 16 * c);
        NX_EACH_ROW(NX_END)
    }
}

template <class T, int64_t kPrecision>
void multiply_panel(const nx_quantized_linear_args& a, const Workspace& s, int64_t n0, char* memory,
                    int64_t threads) {
    uint8_t* panel = reinterpret_cast<uint8_t*>(memory);
    float* scales = reinterpret_cast<float*>(memory + kPanel * a.K);
    pack<kPrecision>(a, n0, panel, scales);
    // Prefetches the panel that this thread will probably claim next, in steps of one block of this panel.
    const int64_t row = kPrecision == NX_INT4 ? a.K / 2 : a.K, first = std::min(a.N, n0 + threads * kPanel);
    const char* data = static_cast<const char*>(a.w.data);
    const int64_t visits = (a.M + kRows - 1) / kRows * (a.K / block_of(a));
    Prefetcher next_panel{data + first * row, data + std::min(a.N, first + kPanel) * row,
                          kPanel * row / 64 / visits + 1};
    alignas(64) float products[kRows][kPanel];
    for (int64_t m = 0; m < a.M; m += kRows) {
        microkernel<kPrecision>(s.x, m, a.M, a.K, panel, scales, block_of(a), next_panel, products);
        epilogue<T>(a, m, std::min<int64_t>(kRows, a.M - m), n0, products,
                    kPrecision == NX_INT8_ROWS ? static_cast<const float*>(a.w.scales) : nullptr);
    }
}

#else

template <class T, int64_t kPrecision>
void multiply_panel(const nx_quantized_linear_args& a, const Workspace& s, int64_t n0, char* memory,
                    int64_t) {
    const int64_t n1 = n0 + std::min<int64_t>(kPanel, a.N - n0);
    float* products = reinterpret_cast<float*>(memory);
    const float* scales = nullptr;
    if constexpr (kPrecision == NX_INT4) {
        multiply_int4(s.x, a.M, a.w, a.K, n0, n1, products, kPanel);
    } else if constexpr (kPrecision == NX_INT8) {
        multiply_int8(s.x, a.M, a.w, a.K, n0, n1, products, kPanel);
    } else {
        scales = static_cast<const float*>(a.w.scales);
        for (int64_t n = n0; n < n1; ++n)
            for_each_batch(s.x, false, a.M, a.K, products + n - n0, kPanel,
                           [&](const QuantizedRows& x, auto count, float* output) {
                               const int8_t* w = static_cast<const int8_t*>(a.w.data) + n * a.K;
                               row_int8<decltype(count)::value>(x, w, nullptr, a.K, output, kPanel);
                           });
    }
    epilogue<T>(a, 0, a.M, n0, reinterpret_cast<float (*)[kPanel]>(products), scales);
}

#endif

template <class T>
void run(const nx_quantized_linear_args& a) {
    const Workspace s = workspace_of(a);
    const int64_t panels = (a.N + kPanel - 1) / kPanel;
#pragma omp parallel
    {
#if defined(_OPENMP)
        char* memory = s.threads + omp_get_thread_num() * s.thread_bytes;
        const int64_t threads = omp_get_num_threads();
#else
        char* memory = s.threads;
        const int64_t threads = 1;
#endif
#pragma omp for schedule(static)
        for (int64_t m = 0; m < a.M; ++m) quantize_row<T>(a, s, m, block_of(a));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < panels; ++i) {
            const auto multiply = a.precision == NX_INT4   ? multiply_panel<T, NX_INT4>
                                  : a.precision == NX_INT8 ? multiply_panel<T, NX_INT8>
                                                           : multiply_panel<T, NX_INT8_ROWS>;
            multiply(a, s, i * kPanel, memory, threads);
        }
    }
}

}  // namespace

int64_t nx::NX_ISA::quantized_linear_scratch(int64_t M, int64_t K) {
#if defined(_OPENMP)
    return activation_bytes(M, K) + omp_get_max_threads() * thread_bytes(M, K);
#else
    return activation_bytes(M, K) + thread_bytes(M, K);
#endif
}

void nx::NX_ISA::quantized_linear(const nx_quantized_linear_args& args) {
    if (args.dtype == NX_BF16)
        run<bf16>(args);
    else
        run<float>(args);
}
