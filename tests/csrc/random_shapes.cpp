// Calls every kernel of the C ABI on random shapes, at every usable level, under the sanitizers. Buffers have
// exactly the sizes that the header states. Also checks invalid arguments, and bf16 results against fp32.
// Prints one line; a finding aborts.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "support.h"

// Random values in one dtype. fp32 buffers contain bf16 values, so that both dtypes compute with the same
// numbers.
struct Buffer {
    std::vector<unsigned char> bytes;
    std::vector<float> values;
    Buffer(int64_t dtype, int64_t n, float scale = 1) : bytes(n * (dtype == NX_BF16 ? 2 : 4)), values(n) {
        std::normal_distribution<float> normal(0, scale);
        for (int64_t i = 0; i < n; ++i) {
            float v = normal(random_engine);
            uint32_t bits;
            std::memcpy(&bits, &v, 4);
            bits &= 0xffff0000u;
            std::memcpy(&values[i], &bits, 4);
            if (dtype == NX_BF16) {
                const uint16_t half = bits >> 16;
                std::memcpy(&bytes[2 * i], &half, 2);
            } else
                std::memcpy(&bytes[4 * i], &bits, 4);
        }
    }
    void* data() { return bytes.data(); }
    float* floats() { return reinterpret_cast<float*>(bytes.data()); }
};

static std::vector<float> read(Buffer& b, int64_t dtype) {
    std::vector<float> out(dtype == NX_BF16 ? b.bytes.size() / 2 : b.bytes.size() / 4);
    for (size_t i = 0; i < out.size(); ++i) {
        uint32_t bits = 0;
        if (dtype == NX_BF16) {
            uint16_t half;
            std::memcpy(&half, &b.bytes[2 * i], 2);
            bits = uint32_t(half) << 16;
        } else
            std::memcpy(&bits, &b.bytes[4 * i], 4);
        std::memcpy(&out[i], &bits, 4);
    }
    return out;
}

static std::vector<float> expert_gate(int64_t dtype) {
    const int64_t B = size(0, 5), E = size(1, 4), T = size(1, 9), H = size(1, 150), pooled = size(0, 1);
    Buffer out(dtype, pooled ? B * H : B * T * H), gates(NX_F32, B * E), experts(dtype, B * E * T * H);
    Buffer w1(dtype, H * E * H, 0.1f), b1(NX_F32, H), w2(dtype, E * H, 0.1f), b2(NX_F32, E);
    Buffer scratch(NX_F32, B * (E + 1) * H);
    nx_expert_gate_args args{dtype,
                             out.data(),
                             gates.floats(),
                             experts.data(),
                             w1.data(),
                             b1.floats(),
                             w2.data(),
                             b2.floats(),
                             scratch.floats(),
                             B,
                             E,
                             T,
                             H,
                             pooled,
                             E * T * H,
                             T * H,
                             H};
    require(nx_cpu_expert_gate(&args) == NX_OK, "expert_gate");
    return read(out, dtype);
}

static std::vector<float> expert_fusion(int64_t dtype) {
    const int64_t B = size(0, 4), Ta = size(1, 9), Tv = size(1, 20), E = size(1, 4), Da = size(1, 90),
                  Dv = size(1, 90);
    const int64_t heads = size(1, 4), H = heads * size(1, 24), W = size(1, 90);
    Buffer token(dtype, B * W), gates(NX_F32, B * E), attention(NX_F32, B * E * heads * Ta * Tv);
    Buffer scratch(NX_F32, nx_cpu_expert_fusion_scratch(B, Ta, Tv, E, H));
    Buffer audio(dtype, B * Ta * E * Da), vision(dtype, B * Tv * E * Dv);
    Buffer wa(dtype, H * Da, 0.1f), ba(NX_F32, H), wv(dtype, H * Dv, 0.1f), qkv(dtype, E * 3 * H * H, 0.1f);
    Buffer bq(NX_F32, E * H), wo(dtype, E * H * H, 0.1f), bo(NX_F32, E * H), norm(NX_F32, E * H),
        bn(NX_F32, E * H);
    Buffer wh(dtype, E * H * H, 0.1f), bh(NX_F32, E * H), wl(dtype, E * H * H, 0.1f), bl(NX_F32, E * H);
    Buffer w1(dtype, H * E * H, 0.1f), b1(NX_F32, H), w2(dtype, E * H, 0.1f), b2(NX_F32, E);
    Buffer wp(dtype, W * H, 0.1f), bp(NX_F32, W);
    nx_expert_fusion_args args{dtype,
                               token.data(),
                               gates.floats(),
                               attention.floats(),
                               scratch.floats(),
                               audio.data(),
                               vision.data(),
                               wa.data(),
                               ba.floats(),
                               wv.data(),
                               qkv.data(),
                               bq.floats(),
                               wo.data(),
                               bo.floats(),
                               norm.floats(),
                               bn.floats(),
                               wh.data(),
                               bh.floats(),
                               wl.data(),
                               bl.floats(),
                               w1.data(),
                               b1.floats(),
                               w2.data(),
                               b2.floats(),
                               wp.data(),
                               bp.floats(),
                               B,
                               Ta,
                               Tv,
                               E,
                               Da,
                               Dv,
                               H,
                               heads,
                               W,
                               1e-5};
    require(nx_cpu_expert_fusion(&args) == NX_OK, "expert_fusion");
    return read(token, dtype);
}

static std::vector<float> temporal_xattn(int64_t dtype) {
    const int64_t B = size(0, 4), T = size(1, 40), C = size(1, 90), M = size(0, 5), heads = size(1, 4);
    const int64_t P = size(1, 90), W = size(1, 90), gap = size(0, 3);
    Buffer tokens(dtype, B * M * W), attention(NX_F32, B * heads * M * T),
        scratch(NX_F32, B * M * (heads * C + P));
    Buffer x(dtype, B ? (B * T - 1) * (C + gap) + C : 0), scores(dtype, heads * M * C, 0.1f),
        mix(dtype, P * heads * C, 0.1f);
    Buffer bm(NX_F32, P), project(dtype, W * P, 0.1f), bp(NX_F32, W);
    nx_temporal_xattn_args args{dtype,
                                tokens.data(),
                                attention.floats(),
                                scratch.floats(),
                                x.data(),
                                scores.data(),
                                mix.data(),
                                bm.floats(),
                                project.data(),
                                bp.floats(),
                                B,
                                T,
                                C,
                                M,
                                heads,
                                P,
                                W,
                                T * (C + gap),
                                C + gap};
    require(nx_cpu_temporal_xattn(&args) == NX_OK, "temporal_xattn");
    return read(tokens, dtype);
}

static std::vector<float> residual_norm(int64_t dtype) {
    const int64_t R = size(0, 4), N = size(1, 20), D = size(1, 300), gap = size(0, 3), optional = size(0, 7);
    const int64_t rows = R * N ? (R * N - 1) * (D + gap) + D : 0;
    Buffer y(dtype, R * N * D), hidden(dtype, rows), update(dtype, rows), weight(dtype, D), bias(dtype, D);
    nx_residual_norm_args args{dtype,
                               y.data(),
                               hidden.data(),
                               optional & 1 ? update.data() : nullptr,
                               optional & 2 ? weight.data() : nullptr,
                               optional & 4 ? bias.data() : nullptr,
                               R,
                               N,
                               D,
                               N * (D + gap),
                               D + gap,
                               N * (D + gap),
                               D + gap,
                               1e-5};
    require(nx_cpu_residual_norm(&args) == NX_OK, "residual_norm");
    return read(y, dtype);
}

static std::vector<float> tap_pool(int64_t dtype) {
    const int64_t R = size(0, 4), N = size(1, 20), D = size(1, 700), gap = size(0, 3), mean = size(0, 1);
    Buffer out(NX_F32, R ? (R - 1) * (D + gap) + D : 0), hidden(dtype, R * N * D);
    nx_tap_pool_args args{dtype, out.floats(), hidden.data(), R, N, D, mean, D + gap, N * D, D, 0.25};
    require(nx_cpu_tap_pool(&args) == NX_OK, "tap_pool");
    return read(out, NX_F32);
}

static std::vector<float> quantized_linear(int64_t dtype) {
    const int64_t M = size(0, 20), K = 64 * size(1, 9), N = size(1, 150),
                  precision = size(NX_INT8, NX_INT8_ROWS);
    const int64_t gap = size(0, 3), activation = size(0, NX_GELU_TANH), combine = size(0, NX_MULTIPLY);
    Buffer out(dtype, M ? (M - 1) * (N + gap) + N : 0), x(dtype, M ? (M - 1) * (K + gap) + K : 0),
        bias(NX_F32, N);
    std::vector<uint8_t> data(precision == NX_INT4 ? N * K / 2 : N * K);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(size(0, 255));
    const bool by_row = precision == NX_INT8_ROWS;
    Buffer scales(by_row ? NX_F32 : NX_BF16, by_row ? N : N * K / (precision == NX_INT8 ? 64 : 32), 0.001f);
    const auto free_memory = [](void* p) { std::free(p); };
    const int64_t bytes = nx_cpu_quantized_linear_scratch(M, K);
    std::unique_ptr<void, decltype(free_memory)> scratch(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                         free_memory);
    nx_quantized_linear_args args{dtype,
                                  out.data(),
                                  x.data(),
                                  {data.data(), scales.data()},
                                  bias.floats(),
                                  scratch.get(),
                                  M,
                                  N,
                                  K,
                                  precision,
                                  activation,
                                  combine,
                                  K + gap,
                                  N + gap,
                                  64 * size(1, 4)};
    require(nx_cpu_quantized_linear(&args) == NX_OK, "quantized_linear");
    return read(out, dtype);
}

static std::vector<float> attention_kernel(int64_t dtype) {
    const int64_t n = size(0, 5), H = size(1, 4), M = size(0, 20), T = size(1, 140), d = size(1, 140),
                  w = size(0, 3);
    const int64_t gap = size(0, 3), row = H * d + gap;
    const auto rows = [&](int64_t count) { return n && count ? (n * count - 1) * row + H * d : 0; };
    Buffer out(dtype, rows(M)), q(dtype, rows(M)), k(dtype, rows(T)), v(dtype, rows(T)),
        bias(dtype, w * H * M * T);
    const auto free_memory = [](void* p) { std::free(p); };
    const int64_t bytes = nx_cpu_attention_scratch(T, d);
    std::unique_ptr<void, decltype(free_memory)> scratch(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                         free_memory);
    nx_attention_args args{dtype,
                           out.data(),
                           q.data(),
                           k.data(),
                           v.data(),
                           w ? bias.data() : nullptr,
                           scratch.get(),
                           n,
                           H,
                           M,
                           T,
                           d,
                           w ? w : 1,
                           size(0, 1) * size(1, 150),
                           M * row,
                           d,
                           row,
                           M * row,
                           d,
                           row,
                           T * row,
                           d,
                           row,
                           T * row,
                           d,
                           row,
                           H * M * T,
                           M * T,
                           T,
                           1 / std::sqrt(double(d))};
    require(nx_cpu_attention(&args) == NX_OK, "attention");
    return read(out, dtype);
}

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 50;
    int calls = 0;
    for_each_level([&] {
        for (int round = 0; round < rounds; ++round)
            for (auto kernel : {expert_gate, expert_fusion, temporal_xattn, residual_norm, tap_pool,
                                quantized_linear, attention_kernel}) {
                random_engine.seed(round);
                const std::vector<float> fp32 = kernel(NX_F32);
                random_engine.seed(round);
                const std::vector<float> bf16 = kernel(NX_BF16);
                require(fp32.size() == bf16.size(), "sizes");
                float peak = 0;
                for (float v : fp32) peak = std::fmax(peak, std::fabs(v));
                for (size_t i = 0; i < fp32.size(); ++i)
                    require(std::fabs(fp32[i] - bf16[i]) <= 0.02f * peak, "bf16 differs from fp32");
                calls += 2;
            }
    });
    require(nx_set_isa("mmx") == NX_INVALID && std::strstr(nx_last_error(), "no such"), "an unknown level");
    nx_expert_gate_args invalid{};
    invalid.dtype = 7;
    require(nx_cpu_expert_gate(&invalid) == NX_INVALID && std::strstr(nx_last_error(), "dtype"),
            "an unknown dtype");
    invalid.dtype = NX_F32;
    require(nx_cpu_expert_gate(&invalid) == NX_INVALID && std::strstr(nx_last_error(), "at least 1"),
            "no experts");
    std::printf("%d calls at %s\n", calls, nx_isa_levels());
}
