// Runs the decode engine on random configurations, under the sanitizers: every precision at every usable
// level, the cache filled with NaN past its length, batches compared with single sequences, invalid
// arguments, many engines created and destroyed. Prints one line; a finding aborts.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "support.h"

static uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits >> 16;
}

// Owns the memory that a configuration points to. Buffers have exactly the sizes that the header states.
struct Model {
    std::vector<std::vector<unsigned char>> buffers;
    std::vector<nx_engine_layer> layers;
    nx_engine_config config{};

    void* bytes(size_t n) { return buffers.emplace_back(n).data(); }

    float* floats(int64_t n, float scale) {
        float* out = static_cast<float*>(bytes(4 * n));
        std::normal_distribution<float> normal(0, scale);
        for (int64_t i = 0; i < n; ++i) out[i] = normal(random_engine);
        return out;
    }

    void* values(int64_t dtype, int64_t n, float scale) {
        float* fp32 = floats(n, scale);
        if (dtype == NX_F32) return fp32;
        uint16_t* out = static_cast<uint16_t*>(bytes(2 * n));
        for (int64_t i = 0; i < n; ++i) out[i] = to_bf16(fp32[i]);
        return out;
    }

    nx_matrix matrix(int64_t precision, int64_t rows, int64_t columns) {
        if (precision <= NX_BF16) return {values(precision, rows * columns, 0.1f), nullptr};
        const int64_t n = precision == NX_INT8 ? rows * columns : rows * columns / 2;
        unsigned char* data = static_cast<unsigned char*>(bytes(n));
        for (int64_t i = 0; i < n; ++i) data[i] = static_cast<unsigned char>(size(0, 255));
        return {data, values(NX_BF16, rows * columns / (precision == NX_INT8 ? 64 : 32), 0.001f)};
    }

    Model(int64_t precision, int64_t threads) {
        auto& c = config;
        const bool quantized = precision >= NX_INT8;
        c.precision = precision;
        c.kv_precision = quantized && size(0, 1) ? size(NX_F32, NX_BF16) : precision;
        c.head_precision = quantized ? NX_INT8 : precision;
        c.dtype = precision == NX_F32 || (quantized && size(0, 1)) ? NX_F32 : NX_BF16;
        c.kv_heads = size(1, 3);
        c.heads = c.kv_heads * size(1, 4);
        c.head_size = quantized ? 64 : 8 * size(1, 5);
        c.width = quantized ? 64 * size(1, 3) : size(1, 90);
        c.mlp = quantized ? 64 * size(1, 3) : size(1, 90);
        c.layers = size(0, 3);
        c.vocab = size(1, 300);
        c.slots = size(1, 5);
        c.capacity = size(2, 40);
        c.threads = threads;
        c.eps = 1e-6;
        const int64_t q = c.heads * c.head_size, kv = c.kv_heads * c.head_size;
        for (int64_t i = 0; i < c.layers; ++i)
            layers.push_back(
                {matrix(precision, q, c.width), matrix(c.kv_precision, kv, c.width),
                 matrix(c.kv_precision, kv, c.width), matrix(precision, c.width, q),
                 matrix(precision, c.mlp, c.width), matrix(precision, c.mlp, c.width),
                 matrix(precision, c.width, c.mlp), floats(c.width, 1), floats(c.width, 1),
                 size(0, 1) ? floats(q + 2 * kv, 1) : nullptr, size(0, 1) ? floats(c.width, 1) : nullptr,
                 size(0, 1) ? floats(c.mlp, 1) : nullptr, size(0, 1) ? floats(c.mlp, 1) : nullptr,
                 size(0, 1) ? floats(c.width, 1) : nullptr});
        c.layer = layers.data();
        c.norm = floats(c.width, 1);
        c.head = matrix(c.head_precision, c.vocab, c.width);
        c.exact_head = quantized && size(0, 1) ? values(c.dtype, c.vocab * c.width, 0.1f) : nullptr;
        c.embedding = values(c.dtype, c.vocab * c.width, 1);
        c.cosines = floats(c.capacity * c.head_size / 2, 1);
        c.sines = floats(c.capacity * c.head_size / 2, 1);
        const int64_t cache = c.layers * c.slots * kv * c.capacity;
        const float nan = std::numeric_limits<float>::quiet_NaN();
        for (void** pointer : {&c.keys, &c.values}) {
            *pointer = bytes(cache * (c.dtype == NX_F32 ? 4 : 2));
            for (int64_t i = 0; i < cache; ++i) {
                const uint16_t nan_bf16 = to_bf16(nan);
                if (c.dtype == NX_F32)
                    std::memcpy(static_cast<char*>(*pointer) + 4 * i, &nan, 4);
                else
                    std::memcpy(static_cast<char*>(*pointer) + 2 * i, &nan_bf16, 2);
            }
        }
    }
};

static int run(int64_t precision, int64_t threads) {
    Model model(precision, threads);
    auto& c = model.config;
    nx_engine* engine = nx_engine_create(&c);
    require(engine, "create");
    // All slots as one batch, then one of them alone from the start: the logits must agree.
    const int64_t steps = size(1, c.capacity);
    std::vector<int64_t> slots(c.slots), positions(c.slots), ids(c.slots), best(c.slots);
    std::vector<std::vector<float>> batch_logits;
    std::vector<std::vector<int64_t>> tokens;
    std::vector<float> logits(c.slots * c.vocab);
    for (int64_t b = 0; b < c.slots; ++b) slots[b] = c.slots - 1 - b;
    for (int64_t t = 0; t < steps; ++t) {
        for (int64_t b = 0; b < c.slots; ++b) {
            positions[b] = t;
            ids[b] = size(0, c.vocab - 1);
        }
        require(!nx_engine_step(engine, c.slots, slots.data(), positions.data(), ids.data(), nullptr,
                                logits.data(), best.data()),
                "step");
        for (float v : logits) require(std::isfinite(v), "a logit is not finite");
        for (int64_t b = 0; b < c.slots; ++b)
            for (int64_t i = 0; i < c.vocab; ++i)
                require(logits[b * c.vocab + best[b]] >= logits[b * c.vocab + i], "best is not the highest");
        batch_logits.push_back(logits);
        tokens.push_back(ids);
    }
    const int64_t b = size(0, c.slots - 1);
    for (int64_t t = 0; t < steps; ++t) {
        std::vector<float> single(c.vocab);
        require(!nx_engine_step(engine, 1, &slots[b], &t, &tokens[t][b], nullptr, single.data(), best.data()),
                "single step");
        float peak = 0;
        for (float v : single) peak = std::fmax(peak, std::fabs(v));
        for (int64_t i = 0; i < c.vocab; ++i)
            require(std::fabs(single[i] - batch_logits[t][b * c.vocab + i]) <= 1e-2f * peak + 1e-5f,
                    "a batch differs from its rows");
    }
    std::vector<float> embedded(c.width, 0.5f);
    int64_t zero = 0;
    require(!nx_engine_step(engine, 1, &zero, &zero, nullptr, embedded.data(), logits.data(), best.data()),
            "embedded tokens");
    require(!nx_engine_step(engine, 0, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr),
            "an empty batch");
    int64_t past_end = c.capacity, unknown_token = c.vocab;
    require(nx_engine_step(engine, 1, &zero, &past_end, ids.data(), nullptr, logits.data(), best.data()) ==
                    NX_INVALID &&
                std::strstr(nx_last_error(), "full"),
            "a full cache");
    require(nx_engine_step(engine, 1, &zero, &zero, &unknown_token, nullptr, logits.data(), best.data()) ==
                    NX_INVALID &&
                std::strstr(nx_last_error(), "no such token"),
            "an unknown token");
    nx_engine_destroy(engine);
    return static_cast<int>(2 * steps);
}

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
    int steps = 0;
    for_each_level([&] {
        for (int round = 0; round < rounds; ++round)
            for (int64_t precision : {NX_F32, NX_BF16, NX_INT8, NX_INT4})
                steps += run(precision, 1 + round % 3);
    });
    Model invalid(NX_INT8, 1);
    invalid.config.width = 65;
    require(!nx_engine_create(&invalid.config) && std::strstr(nx_last_error(), "multiples of 64"),
            "an odd width");
    std::printf("%d steps at %s\n", steps, nx_isa_levels());
}
