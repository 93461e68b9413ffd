// What the decode engine's threads share. Plain data: its kernels are compiled once an instruction set.
#pragma once

#include "../include/nanoemox.h"

namespace nx {

constexpr int64_t kActivationBlock = 64;  // numbers that share a scale when activations are quantised
constexpr int64_t kRecheck = 32;          // best logits of a quantised head that are computed anew

// One thread's copy of a product's input, as the matrix's precision wants it: made by each thread for itself, which costs
// less than a barrier.
struct Activation {
    void* data;      // fp32 or bf16 [B, columns], or integers (quantized.h), of which one takes no more than 4 bytes
    float* scales;   // integers: one for each kActivationBlock columns
    int32_t* sums;   // integers: of the halves of each block, [B, columns / 32]
    float* spread;   // beside int4, where VNNI is: the scales of each two blocks as a vector of 16
    float* lift;     // the same: what unsigned weights add
};

struct EngineState {
    nx_engine_config config;
    // The step.
    int64_t B;
    const int64_t *slots, *positions, *ids;
    const float* rows;
    float* logits;
    int64_t* best;
    // fp32 between the phases.
    float* stream;    // [B, width]
    float* qkv;       // [B, (heads + 2 kv_heads) head_size]
    float* attended;  // [B, heads head_size]
    float* active;    // [B, mlp]
    float* spare;     // [threads, B, chunk], products before an epilogue
    float* scores;    // [threads, group, capacity]
    Activation* activations;  // [threads]
    int64_t spare_size;
    // The next chunk of the phase, and the end of a phase for all threads.
    int64_t (*next)(void* pool);
    void (*barrier)(void* pool);
    void* pool;
};

}  // namespace nx
