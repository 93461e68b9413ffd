// One token through all layers; every thread of the decode engine runs this. Each phase ends offset a
// barrier. Within a phase the threads claim chunks of a matrix's rows in order, so that together they read
// memory sequentially.
#include <cmath>

#include "engine.h"
#include "kernels.h"
#include "quantized.h"

namespace {

using nx::Activation;
using nx::EngineState;

constexpr int64_t kChunkBytes = 1 << 18;  // of a matrix, per task

struct Thread {
    const EngineState& s;
    Activation activation;
    float* products;
    float* scores;

    // activation = RMSNorm(x [B, columns]), or x if norm is null, converted for a matrix of the given
    // precision.
    void prepare(const float* x, int64_t columns, const float* norm, int64_t precision) {
        for (int64_t b = 0; b < s.B; ++b, x += columns) {
            float scale = 1;
            if (norm) {
                const float squares = dot(x, x, columns);
                scale = 1.0f / std::sqrt(squares / columns + static_cast<float>(s.config.eps));
            }
            const auto value = [&](int64_t i, auto get) {
                const Vec v = get(x + i);
                return norm ? v * scale * get(norm + i) : v;
            };
            if (precision == NX_F32 || precision == NX_BF16) {
                for_each_vector(columns, [&](int64_t i, auto get, auto put) {
                    if (precision == NX_F32)
                        put(static_cast<float*>(activation.data) + b * columns + i, value(i, get));
                    else
                        put(static_cast<bf16*>(activation.data) + b * columns + i, value(i, get));
                });
                continue;
            }
            float block[nx::kActivationBlock];
            for (int64_t j = 0; j < columns / nx::kActivationBlock; ++j) {
                for_each_vector(nx::kActivationBlock, [&](int64_t i, auto get, auto put) {
                    put(block + i, value(j * nx::kActivationBlock + i, get));
                });
                pack_activation(activation, precision == NX_INT4, columns, b, j, block);
            }
        }
    }

    // out [B, n1 - n0], rows `stride` apart = the activation times rows [n0, n1) of the matrix.
    void multiply(const nx_matrix& m, int64_t precision, int64_t columns, int64_t n0, int64_t n1, float* out,
                  int64_t stride) {
        switch (precision) {
            case NX_F32:
                linear(static_cast<const float*>(activation.data), columns, s.B,
                       static_cast<const float*>(m.data), static_cast<const float*>(nullptr), n0, n1, columns,
                       out - n0, stride);
                break;
            case NX_BF16:
                linear(static_cast<const bf16*>(activation.data), columns, s.B,
                       static_cast<const bf16*>(m.data), static_cast<const float*>(nullptr), n0, n1, columns,
                       out - n0, stride);
                break;
            case NX_INT8:
                multiply_int8(activation, s.B, m, columns, n0, n1, out, stride);
                break;
            default:
                multiply_int4(activation, s.B, m, columns, n0, n1, out, stride);
        }
    }

    static int64_t row_bytes(int64_t precision, int64_t columns) {
        return precision == NX_F32    ? 4 * columns
               : precision == NX_BF16 ? 2 * columns
               : precision == NX_INT8 ? columns
                                      : columns / 2;
    }

    // Claims chunks of rows of the matrices until none is left, multiplies each into `products`, and calls
    // body(index of the matrix, offsets row, number of rows, stride of the products).
    template <class Body>
    void for_each_chunk(const nx_matrix* const* matrices, const int64_t* rows, int count, int64_t precision,
                        int64_t columns, Body body) {
        int64_t chunk = kChunkBytes / row_bytes(precision, columns) / 16 * 16;
        chunk = chunk < 16 ? 16 : chunk;
        const int64_t capacity = s.products_size / s.B / 16 * 16;
        chunk = chunk > capacity ? capacity : chunk;
        int64_t total = 0;
        for (int i = 0; i < count; ++i) total += (rows[i] + chunk - 1) / chunk;
        for (int64_t task = s.next(s.pool); task < total; task = s.next(s.pool)) {
            int index = 0;
            int64_t c = task;
            while (c >= (rows[index] + chunk - 1) / chunk) {
                c -= (rows[index] + chunk - 1) / chunk;
                ++index;
            }
            const int64_t n0 = c * chunk, n1 = n0 + chunk < rows[index] ? n0 + chunk : rows[index];
            multiply(*matrices[index], precision, columns, n0, n1, products, chunk);
            body(index, n0, n1 - n0, chunk);
        }
    }

    // stream += the activation times the matrix, + bias.
    void add_to_stream(const nx_matrix& m, const float* bias, int64_t precision, int64_t columns) {
        const nx_matrix* matrix = &m;
        const int64_t width = s.config.width;
        for_each_chunk(&matrix, &width, 1, precision, columns,
                       [&](int, int64_t n0, int64_t n, int64_t stride) {
                           for (int64_t b = 0; b < s.B; ++b)
                               for_each_vector(n, [&](int64_t i, auto get, auto put) {
                                   float* x = s.stream + b * width + n0 + i;
                                   const Vec v = get(x) + get(products + b * stride + i);
                                   put(x, bias ? v + get(bias + n0 + i) : v);
                               });
                       });
    }

    // Applies the rotary embedding to one head, in place. The pairs are (i, i + head_size / 2).
    void rotate(float* x, int64_t position) const {
        const int64_t half = s.config.head_size / 2;
        const float *c = s.config.cosines + position * half, *n = s.config.sines + position * half;
        for_each_vector(half, [&](int64_t i, auto get, auto put) {
            const Vec a = get(x + i), b = get(x + half + i);
            put(x + i, a * get(c + i) - b * get(n + i));
            put(x + half + i, b * get(c + i) + a * get(n + i));
        });
    }

    // One key-value head of one sequence: rotary embedding, append to the cache, attention of the group's
    // queries.
    template <class T>
    void attend(int64_t layer, int64_t b, int64_t head) {
        const auto& c = s.config;
        const int64_t d = c.head_size, group = c.heads / c.kv_heads, position = s.positions[b],
                      n = position + 1;
        float* row = s.qkv + b * (c.heads + 2 * c.kv_heads) * d;
        float *q = row + head * group * d, *k = row + (c.heads + head) * d, *v = k + c.kv_heads * d;
        const int64_t offset = ((layer * c.slots + s.slots[b]) * c.kv_heads + head) * c.capacity * d;
        T *keys = static_cast<T*>(c.keys) + offset, *values = static_cast<T*>(c.values) + offset;
        rotate(k, position);
        for_each_vector(d, [&](int64_t i, auto get, auto put) {
            put(keys + position * d + i, get(k + i));
            put(values + position * d + i, get(v + i));
        });
        for (int64_t g = 0; g < group; ++g) rotate(q + g * d, position);
        linear(q, d, group, keys, static_cast<const float*>(nullptr), 0, n, d, scores, c.capacity);
        const float scale = 1.0f / std::sqrt(static_cast<float>(d));
        for (int64_t g = 0; g < group; ++g) {
            float* p = scores + g * c.capacity;
            for_each_vector(n, [&](int64_t i, auto get, auto put) { put(p + i, get(p + i) * scale); });
            softmax(p, n);
            weighted_sum(p, values, n, d, s.context + (b * c.heads + head * group + g) * d);
        }
    }

    // out [d] = sum over positions t of p[t] * values[t], values [n, d].
    template <class T>
    static void weighted_sum(const float* p, const T* values, int64_t n, int64_t d, float* out) {
        constexpr int kUnroll = 8;
        int64_t i = 0;
        for (; i + kUnroll * kLanes <= d; i += kUnroll * kLanes) {
            Vec total[kUnroll] = {};
            for (int64_t t = 0; t < n; ++t)
                for (int j = 0; j < kUnroll; ++j) total[j] += p[t] * load(values + t * d + i + j * kLanes);
            for (int j = 0; j < kUnroll; ++j) store(out + i + j * kLanes, total[j]);
        }
        for_each_vector(d - i, [&](int64_t j, auto get, auto put) {
            Vec total{};
            for (int64_t t = 0; t < n; ++t) total += p[t] * get(values + t * d + i + j);
            put(out + i + j, total);
        });
    }

    // stream = the embedded tokens.
    void embed() const {
        const auto& c = s.config;
        for (int64_t b = s.next(s.pool); b < s.B; b = s.next(s.pool))
            for_each_vector(c.width, [&](int64_t i, auto get, auto put) {
                Vec v;
                if (s.embedded)
                    v = get(s.embedded + b * c.width + i);
                else if (c.dtype == NX_BF16)
                    v = get(static_cast<const bf16*>(c.embedding) + s.ids[b] * c.width + i);
                else
                    v = get(static_cast<const float*>(c.embedding) + s.ids[b] * c.width + i);
                put(s.stream + b * c.width + i, v);
            });
    }

    // Projections to queries, keys and values: `count` of the three, begin index `begin` on, all of one
    // precision.
    void project(const nx_engine_layer& w, int begin, int count, int64_t precision) {
        const auto& c = s.config;
        const int64_t queries = c.heads * c.head_size, keys = c.kv_heads * c.head_size,
                      out = queries + 2 * keys;
        const nx_matrix* matrices[] = {&w.q, &w.k, &w.v};
        const int64_t rows[] = {queries, keys, keys}, offsets[] = {0, queries, queries + keys};
        prepare(s.stream, c.width, w.input_norm, precision);
        for_each_chunk(matrices + begin, rows + begin, count, precision, c.width,
                       [&](int index, int64_t n0, int64_t n, int64_t stride) {
                           const int64_t offset = offsets[begin + index] + n0;
                           for (int64_t b = 0; b < s.B; ++b)
                               for_each_vector(n, [&](int64_t i, auto get, auto put) {
                                   const Vec v = get(products + b * stride + i);
                                   put(s.qkv + b * out + offset + i,
                                       w.bias ? v + get(w.bias + offset + i) : v);
                               });
                       });
        s.barrier(s.pool);
    }

    void layer(int64_t index) {
        const auto& c = s.config;
        const nx_engine_layer& w = c.layer[index];
        const int64_t d = c.head_size;
        const bool same_precision = c.kv_precision == c.precision;
        project(w, 0, same_precision ? 3 : 1, c.precision);
        if (!same_precision) project(w, 1, 2, c.kv_precision);
        for (int64_t task = s.next(s.pool); task < s.B * c.kv_heads; task = s.next(s.pool)) {
            if (c.dtype == NX_BF16)
                attend<bf16>(index, task / c.kv_heads, task % c.kv_heads);
            else
                attend<float>(index, task / c.kv_heads, task % c.kv_heads);
        }
        s.barrier(s.pool);
        prepare(s.context, c.heads * d, nullptr, c.precision);
        add_to_stream(w.o, w.o_bias, c.precision, c.heads * d);
        s.barrier(s.pool);
        prepare(s.stream, c.width, w.post_norm, c.precision);
        gate_and_up(w);
        s.barrier(s.pool);
        prepare(s.mlp_hidden, c.mlp, nullptr, c.precision);
        add_to_stream(w.down, w.down_bias, c.precision, c.mlp);
        s.barrier(s.pool);
    }

    // mlp_hidden = silu(gate) * up.
    void gate_and_up(const nx_engine_layer& w) {
        const auto& c = s.config;
        const nx_matrix* gate = &w.gate;
        float* up = products + s.products_size;
        for_each_chunk(&gate, &c.mlp, 1, c.precision, c.width,
                       [&](int, int64_t n0, int64_t n, int64_t stride) {
                           multiply(w.up, c.precision, c.width, n0, n0 + n, up, stride);
                           for (int64_t b = 0; b < s.B; ++b)
                               for_each_vector(n, [&](int64_t i, auto get, auto put) {
                                   Vec g = get(products + b * stride + i), u = get(up + b * stride + i);
                                   if (w.gate_bias) g += get(w.gate_bias + n0 + i);
                                   if (w.up_bias) u += get(w.up_bias + n0 + i);
                                   put(s.mlp_hidden + b * c.mlp + n0 + i, g / (1.0f + exp(-g)) * u);
                               });
                       });
    }

    // logits and best.
    void vocabulary() {
        const auto& c = s.config;
        const nx_matrix* head = &c.head;
        prepare(s.stream, c.width, c.norm, c.head_precision);
        for_each_chunk(&head, &c.vocab, 1, c.head_precision, c.width,
                       [&](int, int64_t n0, int64_t n, int64_t stride) {
                           for (int64_t b = 0; b < s.B; ++b)
                               for_each_vector(n, [&](int64_t i, auto get, auto put) {
                                   put(s.logits + b * c.vocab + n0 + i, get(products + b * stride + i));
                               });
                       });
        s.barrier(s.pool);
        const bool rescored = c.exact_head && c.head_precision == NX_INT8;
        if (rescored) prepare(s.stream, c.width, c.norm, c.dtype);
        for (int64_t b = s.next(s.pool); b < s.B; b = s.next(s.pool)) {
            float* logits = s.logits + b * c.vocab;
            if (rescored) rescore(b, logits);
            s.best[b] = first_highest(logits, c.vocab);
        }
        s.barrier(s.pool);
    }

    // Recomputes the highest logits with the unquantised head.
    void rescore(int64_t b, float* logits) const {
        const auto& c = s.config;
        int64_t rows[nx::kRescored];
        const int64_t count = c.vocab < nx::kRescored ? c.vocab : nx::kRescored;
        highest(logits, c.vocab, rows, count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t offset = rows[i] * c.width, x = b * c.width;
            logits[rows[i]] = c.dtype == NX_BF16
                                  ? dot(static_cast<const bf16*>(activation.data) + x,
                                        static_cast<const bf16*>(c.exact_head) + offset, c.width)
                                  : dot(static_cast<const float*>(activation.data) + x,
                                        static_cast<const float*>(c.exact_head) + offset, c.width);
        }
    }

    // Index of the offsets of the highest of n values.
    static int64_t first_highest(const float* x, int64_t n) {
        Vec top = splat(x[0]);
        for_each_vector(n - n % kLanes, [&](int64_t i, auto get, auto) {
            const Vec v = get(x + i);
            top = v > top ? v : top;
        });
        float peak = x[0];
        for (int lane = 0; lane < kLanes; ++lane) peak = top[lane] > peak ? top[lane] : peak;
        for (int64_t i = n - n % kLanes; i < n; ++i) peak = x[i] > peak ? x[i] : peak;
        for (int64_t i = 0; i < n; ++i)
            if (x[i] == peak) return i;
        return 0;
    }

    // Indices of the `count` highest of n values, by insertion: few values pass the offsets comparison.
    static void highest(const float* x, int64_t n, int64_t* indices, int64_t count) {
        int64_t size = 0;
        for (int64_t i = 0; i < n; ++i) {
            if (size == count && !(x[i] > x[indices[count - 1]])) continue;
            int64_t rank = size < count ? size++ : count - 1;
            for (; rank > 0 && x[i] > x[indices[rank - 1]]; --rank) indices[rank] = indices[rank - 1];
            indices[rank] = i;
        }
    }

    void token() {
        embed();
        s.barrier(s.pool);
        for (int64_t i = 0; i < s.config.layers; ++i) layer(i);
        vocabulary();
    }
};

}  // namespace

void nx::NX_ISA::engine_token(const EngineState& state, int64_t thread) {
    const int64_t group = state.config.heads / state.config.kv_heads;
    Thread{state, state.activations[thread], state.products + 2 * thread * state.products_size,
           state.scores + thread * group * state.config.capacity}
        .token();
}
