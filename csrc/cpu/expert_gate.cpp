// expert_gate: mean over time, hidden layer of the gate, softmax, weighted sum of the experts.
#include "gate.h"
#include "kernels.h"

namespace {

template <class T>
void run(const nx_expert_gate_args& a) {
    const T* experts = static_cast<const T*>(a.experts);
    const int64_t width = a.E * a.H;
    float* means = a.scratch;
    float* hidden = means + a.B * width;
    const Gate<T> gate{static_cast<const T*>(a.w1), a.b1, static_cast<const T*>(a.w2), a.b2, a.E, a.H};
    const bool parallel = a.B * width * (a.T + a.H) > kParallelThreshold;
#pragma omp parallel if (parallel)
    {
#pragma omp for
        for (int64_t row = 0; row < a.B * a.E; ++row) {
            const T* x = experts + row / a.E * a.stride_b + row % a.E * a.stride_e;
            for_each_vector(a.H, [&](int64_t i, auto get, auto put) {
                Vec total{};
                for (int64_t t = 0; t < a.T; ++t) total += get(x + t * a.stride_t + i);
                put(means + row * a.H + i, total / static_cast<float>(a.T));
            });
        }
        gate.hidden(means, a.B, hidden);
#pragma omp for
        for (int64_t b = 0; b < a.B; ++b) gate.scores(hidden + b * a.H, a.gates + b * a.E);
        if (a.pooled) {
#pragma omp for
            for (int64_t b = 0; b < a.B; ++b)
                gate.combine(means + b * width, a.H, a.gates + b * a.E, static_cast<T*>(a.out) + b * a.H);
        } else {
#pragma omp for
            for (int64_t row = 0; row < a.B * a.T; ++row) {
                const int64_t b = row / a.T, t = row % a.T;
                gate.combine(experts + b * a.stride_b + t * a.stride_t, a.stride_e, a.gates + b * a.E,
                             static_cast<T*>(a.out) + row * a.H);
            }
        }
    }
}

}  // namespace

void nx::NX_ISA::expert_gate(const nx_expert_gate_args& args) {
    args.dtype == NX_BF16 ? run<bf16>(args) : run<float>(args);
}
