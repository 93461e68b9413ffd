// One token through all layers, as every thread of the decode engine runs it. Phases end at a barrier; within one, threads
// take chunks of a matrix's rows in order, so that all of them read one stretch of memory together.
#include <cmath>

#include "engine.h"
#include "kernels.h"
#include "quantized.h"

namespace {

using nx::Activation;
using nx::EngineState;

constexpr int64_t kRowBytes = 1 << 18;  // of a matrix, that a thread takes at a time

struct Thread {
    const EngineState& s;
    Activation held;
    float* spare;
    float* scores;

    // held = x [B, columns], through RMSNorm if there is one, in the precision of the matrix it will meet.
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
                each_vector(columns, [&](int64_t i, auto get, auto put) {
                    if (precision == NX_F32)
                        put(static_cast<float*>(held.data) + b * columns + i, value(i, get));
                    else
                        put(static_cast<bf16*>(held.data) + b * columns + i, value(i, get));
                });
                continue;
            }
            float block[nx::kActivationBlock];
            for (int64_t j = 0; j < columns / nx::kActivationBlock; ++j) {
                each_vector(nx::kActivationBlock, [&](int64_t i, auto get, auto put) {
                    put(block + i, value(j * nx::kActivationBlock + i, get));
                });
                hold(held, precision == NX_INT4, columns, b, j, block);
            }
        }
    }

    // out [B, n1 - n0] at `stride` = rows [n0, n1) of the matrix times the held activation.
    void multiply(const nx_matrix& m, int64_t precision, int64_t columns, int64_t n0, int64_t n1, float* out,
                  int64_t stride) {
        switch (precision) {
            case NX_F32:
                linear(static_cast<const float*>(held.data), columns, s.B, static_cast<const float*>(m.data),
                       static_cast<const float*>(nullptr), n0, n1, columns, out - n0, stride);
                break;
            case NX_BF16:
                linear(static_cast<const bf16*>(held.data), columns, s.B, static_cast<const bf16*>(m.data),
                       static_cast<const float*>(nullptr), n0, n1, columns, out - n0, stride);
                break;
            case NX_INT8:
                multiply_int8(held, s.B, m, columns, n0, n1, out, stride);
                break;
            default:
                multiply_int4(held, s.B, m, columns, n0, n1, out, stride);
        }
    }

    static int64_t row_bytes(int64_t precision, int64_t columns) {
        return precision == NX_F32 ? 4 * columns : precision == NX_BF16 ? 2 * columns : precision == NX_INT8 ? columns
                                                                                                              : columns / 2;
    }

    // Calls body(matrix, first row, rows, products in `spare`, their stride) for chunks of the matrices, until none is left.
    template <class Body>
    void over(const nx_matrix* const* matrices, const int64_t* rows, int count, int64_t precision, int64_t columns,
              Body body) {
        int64_t chunk = kRowBytes / row_bytes(precision, columns) / 16 * 16;
        chunk = chunk < 16 ? 16 : chunk;
        const int64_t most = s.spare_size / s.B / 16 * 16;
        chunk = chunk > most ? most : chunk;
        int64_t total = 0;
        for (int i = 0; i < count; ++i) total += (rows[i] + chunk - 1) / chunk;
        for (int64_t task = s.next(s.pool); task < total; task = s.next(s.pool)) {
            int which = 0;
            int64_t c = task;
            while (c >= (rows[which] + chunk - 1) / chunk) c -= (rows[which] + chunk - 1) / chunk, ++which;
            const int64_t n0 = c * chunk, n1 = n0 + chunk < rows[which] ? n0 + chunk : rows[which];
            multiply(*matrices[which], precision, columns, n0, n1, spare, chunk);
            body(which, n0, n1 - n0, chunk);
        }
    }

    void add_to_stream(const nx_matrix& m, const float* bias, int64_t precision, int64_t columns) {
        const nx_matrix* one = &m;
        const int64_t width = s.config.width;
        over(&one, &width, 1, precision, columns, [&](int, int64_t n0, int64_t n, int64_t stride) {
            for (int64_t b = 0; b < s.B; ++b)
                each_vector(n, [&](int64_t i, auto get, auto put) {
                    float* x = s.stream + b * width + n0 + i;
                    const Vec v = get(x) + get(spare + b * stride + i);
                    put(x, bias ? v + get(bias + n0 + i) : v);
                });
        });
    }

    // Rotates one head in place: pairs are (i, i + half).
    void rotate(float* x, int64_t position) const {
        const int64_t half = s.config.head_size / 2;
        const float *c = s.config.cosines + position * half, *n = s.config.sines + position * half;
        each_vector(half, [&](int64_t i, auto get, auto put) {
            const Vec a = get(x + i), b = get(x + half + i);
            put(x + i, a * get(c + i) - b * get(n + i));
            put(x + half + i, b * get(c + i) + a * get(n + i));
        });
    }

    // One sequence, one key-value head: rotation, append to the cache, attention of the group's queries.
    template <class T>
    void attend(int64_t layer, int64_t b, int64_t head) {
        const auto& c = s.config;
        const int64_t d = c.head_size, group = c.heads / c.kv_heads, position = s.positions[b], n = position + 1;
        float* row = s.qkv + b * (c.heads + 2 * c.kv_heads) * d;
        float *q = row + head * group * d, *k = row + (c.heads + head) * d, *v = k + c.kv_heads * d;
        const int64_t at = ((layer * c.slots + s.slots[b]) * c.kv_heads + head) * c.capacity * d;
        T *keys = static_cast<T*>(c.keys) + at, *values = static_cast<T*>(c.values) + at;
        rotate(k, position);
        each_vector(d, [&](int64_t i, auto get, auto put) {
            put(keys + position * d + i, get(k + i));
            put(values + position * d + i, get(v + i));
        });
        for (int64_t g = 0; g < group; ++g) rotate(q + g * d, position);
        linear(q, d, group, keys, static_cast<const float*>(nullptr), 0, n, d, scores, c.capacity);
        const float scale = 1.0f / std::sqrt(static_cast<float>(d));
        for (int64_t g = 0; g < group; ++g) {
            float* p = scores + g * c.capacity;
            each_vector(n, [&](int64_t i, auto get, auto put) { put(p + i, get(p + i) * scale); });
            softmax(p, n);
            mix(p, values, n, d, s.attended + (b * c.heads + head * group + g) * d);
        }
    }

    // out [d] = sum over positions of p times values [n, d].
    template <class T>
    static void mix(const float* p, const T* values, int64_t n, int64_t d, float* out) {
        constexpr int kMany = 8;
        int64_t i = 0;
        for (; i + kMany * kLanes <= d; i += kMany * kLanes) {
            Vec total[kMany] = {};
            for (int64_t t = 0; t < n; ++t)
                for (int j = 0; j < kMany; ++j) total[j] += p[t] * load(values + t * d + i + j * kLanes);
            for (int j = 0; j < kMany; ++j) store(out + i + j * kLanes, total[j]);
        }
        each_vector(d - i, [&](int64_t j, auto get, auto put) {
            Vec total{};
            for (int64_t t = 0; t < n; ++t) total += p[t] * get(values + t * d + i + j);
            put(out + i + j, total);
        });
    }

    void embed() const {
        const auto& c = s.config;
        for (int64_t b = s.next(s.pool); b < s.B; b = s.next(s.pool))
            each_vector(c.width, [&](int64_t i, auto get, auto put) {
                Vec v;
                if (s.rows)
                    v = get(s.rows + b * c.width + i);
                else if (c.dtype == NX_BF16)
                    v = get(static_cast<const bf16*>(c.embedding) + s.ids[b] * c.width + i);
                else
                    v = get(static_cast<const float*>(c.embedding) + s.ids[b] * c.width + i);
                put(s.stream + b * c.width + i, v);
            });
    }

    // Queries, keys and values, `count` of these from the `from`th on, all of one precision.
    void project(const nx_engine_layer& w, int from, int count, int64_t precision) {
        const auto& c = s.config;
        const int64_t queries = c.heads * c.head_size, keys = c.kv_heads * c.head_size, out = queries + 2 * keys;
        const nx_matrix* matrices[] = {&w.q, &w.k, &w.v};
        const int64_t rows[] = {queries, keys, keys}, first[] = {0, queries, queries + keys};
        prepare(s.stream, c.width, w.input_norm, precision);
        over(matrices + from, rows + from, count, precision, c.width, [&](int which, int64_t n0, int64_t n, int64_t stride) {
            const int64_t at = first[from + which] + n0;
            for (int64_t b = 0; b < s.B; ++b)
                each_vector(n, [&](int64_t i, auto get, auto put) {
                    const Vec v = get(spare + b * stride + i);
                    put(s.qkv + b * out + at + i, w.bias ? v + get(w.bias + at + i) : v);
                });
        });
        s.barrier(s.pool);
    }

    void layer(int64_t index) {
        const auto& c = s.config;
        const nx_engine_layer& w = c.layer[index];
        const int64_t d = c.head_size;
        const bool alike = c.kv_precision == c.precision;
        project(w, 0, alike ? 3 : 1, c.precision);
        if (!alike) project(w, 1, 2, c.kv_precision);
        for (int64_t task = s.next(s.pool); task < s.B * c.kv_heads; task = s.next(s.pool)) {
            if (c.dtype == NX_BF16)
                attend<bf16>(index, task / c.kv_heads, task % c.kv_heads);
            else
                attend<float>(index, task / c.kv_heads, task % c.kv_heads);
        }
        s.barrier(s.pool);
        prepare(s.attended, c.heads * d, nullptr, c.precision);
        add_to_stream(w.o, w.o_bias, c.precision, c.heads * d);
        s.barrier(s.pool);
        prepare(s.stream, c.width, w.post_norm, c.precision);
        gate_and_up(w);
        s.barrier(s.pool);
        prepare(s.active, c.mlp, nullptr, c.precision);
        add_to_stream(w.down, w.down_bias, c.precision, c.mlp);
        s.barrier(s.pool);
    }

    // active = silu(gate) * up.
    void gate_and_up(const nx_engine_layer& w) {
        const auto& c = s.config;
        const nx_matrix* gate = &w.gate;
        float* up = spare + s.spare_size;
        over(&gate, &c.mlp, 1, c.precision, c.width, [&](int, int64_t n0, int64_t n, int64_t stride) {
            multiply(w.up, c.precision, c.width, n0, n0 + n, up, stride);
            for (int64_t b = 0; b < s.B; ++b)
                each_vector(n, [&](int64_t i, auto get, auto put) {
                    Vec g = get(spare + b * stride + i), u = get(up + b * stride + i);
                    if (w.gate_bias) g += get(w.gate_bias + n0 + i);
                    if (w.up_bias) u += get(w.up_bias + n0 + i);
                    put(s.active + b * c.mlp + n0 + i, g / (1.0f + exp(-g)) * u);
                });
        });
    }

    void vocabulary() {
        const auto& c = s.config;
        const nx_matrix* head = &c.head;
        prepare(s.stream, c.width, c.norm, c.head_precision);
        over(&head, &c.vocab, 1, c.head_precision, c.width, [&](int, int64_t n0, int64_t n, int64_t stride) {
            for (int64_t b = 0; b < s.B; ++b)
                each_vector(n, [&](int64_t i, auto get, auto put) {
                    put(s.logits + b * c.vocab + n0 + i, get(spare + b * stride + i));
                });
        });
        s.barrier(s.pool);
        const bool again = c.exact_head && c.head_precision == NX_INT8;
        if (again) prepare(s.stream, c.width, c.norm, c.dtype);
        for (int64_t b = s.next(s.pool); b < s.B; b = s.next(s.pool)) {
            float* logits = s.logits + b * c.vocab;
            if (again) recheck(b, logits);
            s.best[b] = first_highest(logits, c.vocab);
        }
        s.barrier(s.pool);
    }

    // The highest logits anew, from the head's own weights.
    void recheck(int64_t b, float* logits) const {
        const auto& c = s.config;
        int64_t rows[nx::kRecheck];
        const int64_t count = c.vocab < nx::kRecheck ? c.vocab : nx::kRecheck;
        highest(logits, c.vocab, rows, count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = rows[i] * c.width, x = b * c.width;
            logits[rows[i]] =
                c.dtype == NX_BF16
                    ? dot(static_cast<const bf16*>(held.data) + x, static_cast<const bf16*>(c.exact_head) + at, c.width)
                    : dot(static_cast<const float*>(held.data) + x, static_cast<const float*>(c.exact_head) + at, c.width);
        }
    }

    // Of n, the first of the highest.
    static int64_t first_highest(const float* x, int64_t n) {
        Vec top = splat(x[0]);
        each_vector(n - n % kLanes, [&](int64_t i, auto get, auto) {
            const Vec v = get(x + i);
            top = v > top ? v : top;
        });
        float most = x[0];
        for (int lane = 0; lane < kLanes; ++lane) most = top[lane] > most ? top[lane] : most;
        for (int64_t i = n - n % kLanes; i < n; ++i) most = x[i] > most ? x[i] : most;
        for (int64_t i = 0; i < n; ++i)
            if (x[i] == most) return i;
        return 0;
    }

    // Indices of the `count` highest of n, by insertion: after the start hardly any passes the first comparison.
    static void highest(const float* x, int64_t n, int64_t* found, int64_t count) {
        int64_t held = 0;
        for (int64_t i = 0; i < n; ++i) {
            if (held == count && !(x[i] > x[found[count - 1]])) continue;
            int64_t at = held < count ? held++ : count - 1;
            for (; at > 0 && x[i] > x[found[at - 1]]; --at) found[at] = found[at - 1];
            found[at] = i;
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
    Thread{state, state.activations[thread], state.spare + 2 * thread * state.spare_size,
           state.scores + thread * group * state.config.capacity}
        .token();
}
