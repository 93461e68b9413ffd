// feature_taps_: residual addition and LayerNorm, fused row by row. tap_pool_: row 0 of a hidden state, or
// the mean of its rows.
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace {

constexpr int64_t kParallelThreshold = 20000;  // elements below which waking threads does not pay
constexpr int64_t kBlock = 8 * kLanes;         // columns of a mean that are summed in registers

// h += update and y = LayerNorm(h) for one row. The norm reads h as stored, after rounding; the variance is
// computed in a second pass.
template <class T>
void row(T* y, T* h, const T* update, const T* weight, const T* bias, int64_t n, float eps) {
    Vec total{}, squares{};
    for_each_vector(n, [&](int64_t i, auto get, auto put) {
        if (update) put(h + i, get(h + i) + get(update + i));
        total += get(h + i);
    });
    if (!weight) {
        std::memcpy(y, h, n * sizeof(T));
        return;
    }
    const float mean = sum(total) / n;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const Vec centred = load(h + i) - mean;
        squares += centred * centred;
    }
    float tail = 0;
    if (i < n) {
        const Vec last = load_part(h + i, n - i) - mean;
        for (int lane = 0; lane < n - i; ++lane) tail += last[lane] * last[lane];
    }
    const float scale = 1.0f / std::sqrt((sum(squares) + tail) / n + eps);
    for_each_vector(n, [&](int64_t j, auto get, auto put) {
        const Vec normed = (get(h + j) - mean) * scale * get(weight + j);
        put(y + j, bias ? normed + get(bias + j) : normed);
    });
}

template <class T>
void norm(const nx_residual_norm_args& a) {
    const bool parallel = a.R * a.N * a.D > kParallelThreshold;
#pragma omp parallel for if (parallel)
    for (int64_t i = 0; i < a.R * a.N; ++i) {
        const int64_t r = i / a.N, n = i % a.N;
        const T* update = static_cast<const T*>(a.update);
        row(static_cast<T*>(a.y) + i * a.D,
            static_cast<T*>(a.hidden) + r * a.hidden_stride_r + n * a.hidden_stride_n,
            update ? update + r * a.update_stride_r + n * a.update_stride_n : nullptr,
            static_cast<const T*>(a.weight), static_cast<const T*>(a.bias), a.D, static_cast<float>(a.eps));
    }
}

template <class T>
void pool(const nx_tap_pool_args& a) {
    const int64_t rows = a.mean ? a.N : 1, blocks = (a.D + kBlock - 1) / kBlock;
    const float weight = static_cast<float>(a.weight), count = static_cast<float>(rows);
    const bool parallel = a.R * rows * a.D > kParallelThreshold;
#pragma omp parallel for if (parallel)
    for (int64_t task = 0; task < a.R * blocks; ++task) {
        const int64_t r = task / blocks, first = task % blocks * kBlock;
        const T* x = static_cast<const T*>(a.hidden) + r * a.hidden_stride_r + first;
        float* out = a.out + r * a.out_stride_r + first;
        if (first + kBlock <= a.D) {
            Vec total[8] = {};
            for (int64_t n = 0; n < rows; ++n)
                for (int i = 0; i < 8; ++i) total[i] += load(x + n * a.hidden_stride_n + i * kLanes);
            for (int i = 0; i < 8; ++i)
                store(out + i * kLanes, load(out + i * kLanes) + weight * (total[i] / count));
        } else {
            for_each_vector(a.D - first, [&](int64_t i, auto get, auto put) {
                Vec total{};
                for (int64_t n = 0; n < rows; ++n) total += get(x + n * a.hidden_stride_n + i);
                put(out + i, get(out + i) + weight * (total / count));
            });
        }
    }
}

}  // namespace

void nx::NX_ISA::residual_norm(const nx_residual_norm_args& args) {
    args.dtype == NX_BF16 ? norm<bf16>(args) : norm<float>(args);
}

void nx::NX_ISA::tap_pool(const nx_tap_pool_args& args) {
    args.dtype == NX_BF16 ? pool<bf16>(args) : pool<float>(args);
}
