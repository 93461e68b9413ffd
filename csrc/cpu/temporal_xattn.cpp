// temporal_xattn with folded weights: attention over frames, then two linear layers over the rows of all
// clips and queries.
#include "gate.h"
#include "kernels.h"

namespace {

template <class T>
void run(const nx_temporal_xattn_args& a) {
    const T* x = static_cast<const T*>(a.x);
    const T* scores = static_cast<const T*>(a.scores);
    float* context = a.scratch;  // [B,M,heads,C]
    float* hidden = context + a.B * a.M * a.heads * a.C;
    const int64_t rows = a.B * a.M, K = a.heads * a.C;
    const bool parallel = rows * (a.heads * a.T * a.C + K * a.P + a.P * a.W) > kParallelThreshold;
#pragma omp parallel if (parallel)
    {
#pragma omp for
        for (int64_t task = 0; task < rows * a.heads; ++task) {
            const int64_t m = task % a.M, head = task / a.M % a.heads, b = task / a.M / a.heads;
            const T* frames = x + b * a.stride_b;
            float* row = a.attention + task * a.T;
            for (int64_t t = 0; t < a.T; ++t)
                row[t] = dot(frames + t * a.stride_t, scores + (head * a.M + m) * a.C, a.C);
            softmax(row, a.T);
            for_each_vector(a.C, [&](int64_t i, auto get, auto put) {
                Vec total{};
                for (int64_t t = 0; t < a.T; ++t) total += row[t] * get(frames + t * a.stride_t + i);
                put(context + ((b * a.M + m) * a.heads + head) * a.C + i, total);
            });
        }
#pragma omp for
        for (int64_t c = 0; c < chunks(a.P); ++c) {
            const int64_t n0 = c * kChunk, n1 = chunk_end(c, a.P);
            linear(context, K, rows, static_cast<const T*>(a.mix), a.mix_bias, n0, n1, K, hidden, a.P);
            for (int64_t r = 0; r < rows; ++r)
                for_each_vector(n1 - n0, [&](int64_t i, auto get, auto put) {
                    put(hidden + r * a.P + n0 + i, gelu(get(hidden + r * a.P + n0 + i)));
                });
        }
#pragma omp for
        for (int64_t c = 0; c < chunks(a.W); ++c)
            linear(hidden, a.P, rows, static_cast<const T*>(a.project), a.project_bias, c * kChunk,
                   chunk_end(c, a.W), a.P, static_cast<T*>(a.tokens), a.W);
    }
}

}  // namespace

void nx::NX_ISA::temporal_xattn(const nx_temporal_xattn_args& args) {
    args.dtype == NX_BF16 ? run<bf16>(args) : run<float>(args);
}
