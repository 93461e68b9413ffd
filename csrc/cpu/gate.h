// The gate over experts, shared by expert_gate and expert_fusion. Its methods are called by
// all threads of a parallel region.
#pragma once

#include "linear.h"

namespace {

constexpr int64_t kParallelThreshold = 100000;  // multiply-adds below which waking threads does not pay
constexpr int64_t kChunk = 64;                  // columns of a linear layer per task

inline int64_t chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }
inline int64_t chunk_end(int64_t chunk, int64_t n) {
    return (chunk + 1) * kChunk < n ? (chunk + 1) * kChunk : n;
}

template <class T>
struct Gate {
    const T* w1;      // [H,E*H]
    const float* b1;  // [H]
    const T* w2;      // [E,H]
    const float* b2;  // [E]
    int64_t E, H;

    // out [B,H] = gelu(W1 means + b1), means [B,E*H].
    void hidden(const float* means, int64_t B, float* out) const {
#pragma omp for
        for (int64_t c = 0; c < chunks(H); ++c) {
            const int64_t n0 = c * kChunk, n1 = chunk_end(c, H);
            linear(means, E * H, B, w1, b1, n0, n1, E * H, out, H);
            for (int64_t b = 0; b < B; ++b)
                for_each_vector(n1 - n0, [&](int64_t i, auto get, auto put) {
                    put(out + b * H + n0 + i, gelu(get(out + b * H + n0 + i)));
                });
        }
    }

    // gates [E] = softmax(W2 hidden + b2) for one clip.
    void scores(const float* hidden, float* gates) const {
        for (int64_t e = 0; e < E; ++e) gates[e] = dot(hidden, w2 + e * H, H) + b2[e];
        softmax(gates, E);
    }

    // out [H] = sum over experts e of gates[e] * rows[e * stride ...].
    template <class TX, class TOut>
    void combine(const TX* rows, int64_t stride, const float* gates, TOut* out) const {
        for_each_vector(H, [&](int64_t i, auto get, auto put) {
            Vec total{};
            for (int64_t e = 0; e < E; ++e) total += gates[e] * get(rows + e * stride + i);
            put(out + i, total);
        });
    }
};

}  // namespace
