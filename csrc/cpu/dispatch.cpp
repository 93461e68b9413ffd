// The C ABI: checks of the arguments and selection of the instruction set.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "dispatch.h"
#include "kernels.h"

namespace {

thread_local char last_error[256] = "";

struct Level {
    const char* name;
    bool (*usable)();
    void (*expert_gate)(const nx_expert_gate_args&);
    void (*expert_fusion)(const nx_expert_fusion_args&);
    void (*temporal_xattn)(const nx_temporal_xattn_args&);
    void (*residual_norm)(const nx_residual_norm_args&);
    void (*tap_pool)(const nx_tap_pool_args&);
    void (*quantized_linear)(const nx_quantized_linear_args&);
    int64_t (*quantized_linear_scratch)(int64_t, int64_t);
    void (*attention)(const nx_attention_args&);
    int64_t (*attention_scratch)(int64_t, int64_t);
    int64_t (*read)(const void*, int64_t);
    void (*engine_token)(const nx::EngineState&, int64_t);
};

#define NX_LEVEL_ENTRY(isa, usable)     \
    {#isa,                              \
     [] { return usable; },             \
     nx::isa::expert_gate,              \
     nx::isa::expert_fusion,            \
     nx::isa::temporal_xattn,           \
     nx::isa::residual_norm,            \
     nx::isa::tap_pool,                 \
     nx::isa::quantized_linear,         \
     nx::isa::quantized_linear_scratch, \
     nx::isa::attention,                \
     nx::isa::attention_scratch,        \
     nx::isa::read,                     \
     nx::isa::engine_token}

#if defined(NX_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

const Level kLevels[] = {
    NX_LEVEL_ENTRY(baseline, true),
#if defined(NX_X86)
    NX_LEVEL_ENTRY(avx2, has_avx2()),
    NX_LEVEL_ENTRY(avx512, has_avx512()),
    NX_LEVEL_ENTRY(avx512_bf16, has_avx512_bf16()),
#endif
};

const Level* highest_usable() {
    const Level* highest = kLevels;
    for (const Level& candidate : kLevels)
        if (candidate.usable()) highest = &candidate;
    return highest;
}

std::atomic<const Level*> active_level{nullptr};

const Level& level() {
    const Level* active = active_level.load(std::memory_order_relaxed);
    if (!active) {
        active = highest_usable();
        active_level.store(active, std::memory_order_relaxed);
    }
    return *active;
}

bool positive(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes)
        if (size < 1) return false;
    return true;
}

}  // namespace

int nx::set_error(const char* function, const char* message) {
    std::snprintf(last_error, sizeof last_error, "%s: %s", function, message);
    return NX_INVALID;
}

void nx::engine_token(const EngineState& state, int64_t thread) { level().engine_token(state, thread); }

#define NX_CHECK(ok, message) \
    if (!(ok)) return nx::set_error(__func__, message)
#define NX_DTYPE(a) NX_CHECK((a)->dtype == NX_F32 || (a)->dtype == NX_BF16, "dtype must be NX_F32 or NX_BF16")

int nx_abi_version(void) { return NX_ABI_VERSION; }
const char* nx_last_error(void) { return last_error; }
const char* nx_isa(void) { return level().name; }

const char* nx_isa_levels(void) {
    static const char* names = [] {
        static char joined[64] = "";
        for (const Level& candidate : kLevels)
            if (candidate.usable()) {
                if (joined[0]) std::strcat(joined, " ");
                std::strcat(joined, candidate.name);
            }
        return joined;
    }();
    return names;
}

int nx_set_isa(const char* name) {
    for (const Level& candidate : kLevels)
        if (name && std::strcmp(candidate.name, name) == 0) {
            NX_CHECK(candidate.usable(), "this CPU does not support the instruction set");
            active_level.store(&candidate, std::memory_order_relaxed);
            return NX_OK;
        }
    return nx::set_error(__func__, "no such instruction set in this build");
}

int nx_cpu_expert_gate(const nx_expert_gate_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->B >= 0 && positive({a->E, a->T, a->H}), "B must be at least 0; E, T and H at least 1");
    if (a->B) level().expert_gate(*a);
    return NX_OK;
}

int64_t nx_cpu_expert_fusion_scratch(int64_t B, int64_t Ta, int64_t Tv, int64_t E, int64_t H) {
    return B * H * (E * (4 * Ta + 3 * Tv + 2) + 2);
}

int nx_cpu_expert_fusion(const nx_expert_fusion_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->B >= 0 && positive({a->Ta, a->Tv, a->E, a->Da, a->Dv, a->H, a->heads, a->W}),
             "B must be at least 0, every other size at least 1");
    NX_CHECK(a->H % a->heads == 0, "heads must divide H");
    if (a->B) level().expert_fusion(*a);
    return NX_OK;
}

int nx_cpu_temporal_xattn(const nx_temporal_xattn_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->B >= 0 && a->M >= 0 && positive({a->T, a->C, a->heads, a->P, a->W}),
             "B and M must be at least 0, every other size at least 1");
    if (a->B && a->M) level().temporal_xattn(*a);
    return NX_OK;
}

int nx_cpu_residual_norm(const nx_residual_norm_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->R >= 0 && a->N >= 0 && a->D >= 0, "sizes must be at least 0");
    if (a->R && a->N && a->D) level().residual_norm(*a);
    return NX_OK;
}

int nx_cpu_tap_pool(const nx_tap_pool_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->R >= 0 && a->N >= 1 && a->D >= 0, "R and D must be at least 0, N at least 1");
    if (a->R && a->D) level().tap_pool(*a);
    return NX_OK;
}

int64_t nx_cpu_quantized_linear_scratch(int64_t M, int64_t K) {
    return level().quantized_linear_scratch(M, K);
}

int nx_cpu_quantized_linear(const nx_quantized_linear_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->precision >= NX_INT8 && a->precision <= NX_INT8_ROWS,
             "precision must be NX_INT8, NX_INT4 or NX_INT8_ROWS");
    NX_CHECK(a->M >= 0 && a->N >= 0 && a->K >= 0 && a->K % 64 == 0,
             "sizes must be at least 0, and K a multiple of 64");
    NX_CHECK(a->activation >= 0 && a->activation <= NX_GELU_TANH, "unknown activation");
    NX_CHECK(a->combine >= NX_STORE && a->combine <= NX_MULTIPLY, "unknown value of combine");
    if (a->M && a->N) level().quantized_linear(*a);
    return NX_OK;
}

int64_t nx_cpu_attention_scratch(int64_t T, int64_t d) { return level().attention_scratch(T, d); }

int nx_cpu_attention(const nx_attention_args* a) {
    NX_DTYPE(a);
    NX_CHECK(a->n >= 0 && a->M >= 0 && positive({a->H, a->T, a->d}),
             "n and M must be at least 0, H, T and d at least 1");
    NX_CHECK(!a->bias || a->w >= 1, "w must be at least 1");
    NX_CHECK(a->causal_offset >= 0, "causal_offset must be at least 0");
    if (a->n && a->M) level().attention(*a);
    return NX_OK;
}

int64_t nx_cpu_read(const void* data, int64_t n) { return n > 0 ? level().read(data, n) : 0; }
