// expert_fusion with folded weights: every stage runs over all clips and all experts.
#include <cmath>

#include "gate.h"
#include "kernels.h"

namespace {

// y = LayerNorm(x) for one row; the variance is computed in a second pass, from the L1 cache.
void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y) {
    Vec total{}, squares{};
    for_each_vector(n, [&](int64_t i, auto get, auto) { total += get(x + i); });
    const float mean = sum(total) / n;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const Vec centred = load(x + i) - mean;
        squares += centred * centred;
    }
    float tail = 0;
    for (; i < n; ++i) tail += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt((sum(squares) + tail) / n + eps);
    for_each_vector(n, [&](int64_t j, auto get, auto put) {
        put(y + j, (get(x + j) - mean) * scale * get(weight + j) + get(bias + j));
    });
}

template <class T>
void run(const nx_expert_fusion_args& a) {
    const auto weights = [](const void* p) { return static_cast<const T*>(p); };
    const int64_t E = a.E, H = a.H, size = H / a.heads, rows_a = a.B * a.Ta, rows_v = a.B * a.Tv;
    // The rows of both streams are ordered (clip, time, expert), so that both projections are plain matrix
    // products.
    float* audio_rows = a.scratch;
    float* query = audio_rows + rows_a * E * H;
    float* context = query + rows_a * E * H;
    float* residual = context + rows_a * E * H;
    float *normed = context, *ffn_hidden = query;  // reused: both are free after the attention
    float* vision_rows = residual + rows_a * E * H;
    float* key = vision_rows + rows_v * E * H;
    float* value = key + rows_v * E * H;
    float* pooled_hidden = value + rows_v * E * H;
    float* pooled = pooled_hidden + a.B * E * H;
    float* gate_hidden = pooled + a.B * E * H;
    float* combined = gate_hidden + a.B * H;
    const Gate<T> gate{weights(a.gate_hidden), a.gate_hidden_bias, weights(a.gate), a.gate_bias, E, H};
    const float scale = 1.0f / std::sqrt(static_cast<float>(size)), count = static_cast<float>(a.Ta);
    const int64_t parts = chunks(H);

    const bool parallel = E * H * (rows_a * (a.Da + 4 * H) + rows_v * (a.Dv + 2 * H)) > kParallelThreshold;
    const auto chunk = [&](int64_t task, auto body) {  // body(expert or stream, first column, end column)
        const int64_t c = task % parts;
        body(task / parts, c * kChunk, chunk_end(c, H));
    };

#pragma omp parallel if (parallel)
    {
#pragma omp for
        for (int64_t task = 0; task < 2 * parts; ++task)
            chunk(task, [&](int64_t stream, int64_t n0, int64_t n1) {
                if (stream == 0)
                    linear(weights(a.audio), a.Da, rows_a * E, weights(a.audio_weight), a.audio_bias, n0, n1,
                           a.Da, audio_rows, H);
                else
                    linear(weights(a.vision), a.Dv, rows_v * E, weights(a.vision_weight), nullptr, n0, n1,
                           a.Dv, vision_rows, H);
            });
#pragma omp for
        for (int64_t task = 0; task < 3 * E * parts; ++task)
            chunk(task, [&](int64_t product, int64_t n0, int64_t n1) {
                const int64_t e = product / 3, part = product % 3;
                const T* w = weights(a.qkv) + (3 * e + part) * H * H;
                if (part == 0)
                    linear(audio_rows + e * H, E * H, rows_a, w, a.query_bias + e * H, n0, n1, H,
                           query + e * H, E * H);
                else
                    linear(vision_rows + e * H, E * H, rows_v, w, nullptr, n0, n1, H,
                           (part == 1 ? key : value) + e * H, E * H);
            });
#pragma omp for
        for (int64_t task = 0; task < a.B * E * a.heads; ++task) {
            const int64_t head = task % a.heads, e = task / a.heads % E, b = task / a.heads / E;
            const int64_t offset_a = b * a.Ta * E * H + e * H + head * size,
                          offset_v = b * a.Tv * E * H + e * H + head * size;
            float* attention = a.attention + task * a.Ta * a.Tv;
            for (int64_t i = 0; i < a.Ta; ++i) {
                float* row = attention + i * a.Tv;
                for (int64_t j = 0; j < a.Tv; ++j)
                    row[j] = scale * dot(query + offset_a + i * E * H, key + offset_v + j * E * H, size);
                softmax(row, a.Tv);
                for_each_vector(size, [&](int64_t n, auto get, auto put) {
                    Vec total{};
                    for (int64_t j = 0; j < a.Tv; ++j)
                        total += row[j] * get(value + offset_v + j * E * H + n);
                    put(context + offset_a + i * E * H + n, total);
                });
            }
        }
#pragma omp for
        for (int64_t task = 0; task < E * parts; ++task)
            chunk(task, [&](int64_t e, int64_t n0, int64_t n1) {
                linear(context + e * H, E * H, rows_a, weights(a.out) + e * H * H, a.out_bias + e * H, n0, n1,
                       H, residual + e * H, E * H);
                for (int64_t r = 0; r < rows_a; ++r)
                    for_each_vector(n1 - n0, [&](int64_t i, auto get, auto put) {
                        const int64_t offset = r * E * H + e * H + n0 + i;
                        put(residual + offset, get(residual + offset) + get(audio_rows + offset));
                    });
            });
#pragma omp for
        for (int64_t row = 0; row < rows_a * E; ++row) {
            const int64_t e = row % E;
            layer_norm(residual + row * H, a.norm + e * H, a.norm_bias + e * H, H, static_cast<float>(a.eps),
                       normed + row * H);
        }
#pragma omp for
        for (int64_t task = 0; task < E * parts; ++task)
            chunk(task, [&](int64_t e, int64_t n0, int64_t n1) {
                linear(normed + e * H, E * H, rows_a, weights(a.hidden) + e * H * H, a.hidden_bias + e * H,
                       n0, n1, H, ffn_hidden + e * H, E * H);
                for (int64_t b = 0; b < a.B; ++b)
                    for_each_vector(n1 - n0, [&](int64_t i, auto get, auto put) {
                        const int64_t offset = b * a.Ta * E * H + e * H + n0 + i;
                        Vec total{};
                        for (int64_t t = 0; t < a.Ta; ++t)
                            total += gelu(get(ffn_hidden + offset + t * E * H));
                        put(pooled_hidden + (b * E + e) * H + n0 + i, total / count);
                    });
            });
#pragma omp for
        for (int64_t task = 0; task < E * parts; ++task)
            chunk(task, [&](int64_t e, int64_t n0, int64_t n1) {
                linear(pooled_hidden + e * H, E * H, a.B, weights(a.last) + e * H * H, a.last_bias + e * H,
                       n0, n1, H, pooled + e * H, E * H);
                for (int64_t b = 0; b < a.B; ++b)
                    for_each_vector(n1 - n0, [&](int64_t i, auto get, auto put) {
                        const int64_t offset = e * H + n0 + i;
                        Vec total{};
                        for (int64_t t = 0; t < a.Ta; ++t)
                            total += get(residual + (b * a.Ta + t) * E * H + offset);
                        put(pooled + b * E * H + offset, get(pooled + b * E * H + offset) + total / count);
                    });
            });
        gate.hidden(pooled, a.B, gate_hidden);
#pragma omp for
        for (int64_t b = 0; b < a.B; ++b) {
            gate.scores(gate_hidden + b * H, a.gates + b * E);
            gate.combine(pooled + b * E * H, H, a.gates + b * E, combined + b * H);
        }
#pragma omp for
        for (int64_t c = 0; c < chunks(a.W); ++c)
            linear(combined, H, a.B, weights(a.project), a.project_bias, c * kChunk, chunk_end(c, a.W), H,
                   static_cast<T*>(a.token), a.W);
    }
}

}  // namespace

void nx::NX_ISA::expert_fusion(const nx_expert_fusion_args& args) {
    args.dtype == NX_BF16 ? run<bf16>(args) : run<float>(args);
}
