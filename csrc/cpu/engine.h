// State that the threads of the decode engine share. Plain data, because its kernels are compiled once per
// instruction set.
#pragma once

#include "../include/nanoemox.h"

namespace nx {

constexpr int64_t kActivationBlock = 64;  // elements of a quantised activation that share a scale
constexpr int64_t kRescored = 32;         // highest logits of a quantised head that are recomputed

// The input of a matrix product in the format that the matrix's precision requires. Each thread converts its
// own copy, which costs less than a barrier.
struct Activation {
    void* data;     // fp32 or bf16 [B, columns], or integers (quantized.h) of at most 4 bytes per element
    float* scales;  // integers: one per kActivationBlock columns
    int32_t* sums;  // integers: sums over half blocks, [B, columns / 32]
    float* pair_scales;  // int4 weights with VNNI: scales of two blocks, broadcast to a vector of 16
    float* corrections;  // int4 weights with VNNI: compensate the zero point of the unsigned weights
};

struct EngineState {
    nx_engine_config config;
    // Arguments of the current step.
    int64_t B;
    const int64_t *slots, *positions, *ids;
    const float* embedded;
    float* logits;
    int64_t* best;
    // fp32 intermediate results.
    float* stream;            // [B, width], the residual stream
    float* qkv;               // [B, (heads + 2 kv_heads) head_size]
    float* context;           // [B, heads head_size], the output of attention
    float* mlp_hidden;        // [B, mlp], silu(gate) * up
    float* products;          // [threads, 2, products_size], matrix products before their epilogue
    float* scores;            // [threads, group, capacity], attention weights
    Activation* activations;  // [threads]
    int64_t products_size;
    int64_t (*next)(void* pool);  // index of the next unclaimed task of the phase
    void (*barrier)(void* pool);  // ends a phase: waits for all threads
    void* pool;
};

}  // namespace nx
