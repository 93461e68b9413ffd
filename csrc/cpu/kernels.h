// The kernels of each instruction set (level). A source is compiled once per level, with the level's name as
// NX_ISA.
#pragma once

#include "../include/nanoemox.h"
#include "engine.h"

#define NX_LEVEL(isa)                                            \
    namespace nx::isa {                                          \
    void expert_gate(const nx_expert_gate_args& args);           \
    void expert_fusion(const nx_expert_fusion_args& args);       \
    void temporal_xattn(const nx_temporal_xattn_args& args);     \
    void residual_norm(const nx_residual_norm_args& args);       \
    void tap_pool(const nx_tap_pool_args& args);                 \
    void quantized_linear(const nx_quantized_linear_args& args); \
    int64_t quantized_linear_scratch(int64_t M, int64_t K);      \
    void attention(const nx_attention_args& args);               \
    int64_t attention_scratch(int64_t T, int64_t d);             \
    int64_t read(const void* data, int64_t n);                   \
    void engine_token(const EngineState& state, int64_t thread); \
    }

NX_LEVEL(baseline)
NX_LEVEL(avx2)
NX_LEVEL(avx512)
NX_LEVEL(avx512_bf16)
