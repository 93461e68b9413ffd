/* C ABI of the CPU kernels: raw pointers, sizes and strides in elements, no torch and no Python.
 *
 * Every function returns 0, or one of the codes below with a message in nx_last_error() (one per thread). The
 * element type T of a tensor is given by `dtype`; sums are accumulated in fp32. The kernels allocate nothing:
 * the caller provides results and scratch memory. An empty batch is a no-op. Letters: B clips, T time,
 * E experts, H fusion width, C and D encoder width, M queries, W width of the language model, R images or
 * windows, N rows of a hidden state.
 */
#ifndef NANOEMOX_H
#define NANOEMOX_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NX_API __attribute__((visibility("default")))
#else
#define NX_API
#endif

#define NX_ABI_VERSION 4

enum { NX_OK = 0, NX_INVALID = 1 };
enum { NX_F32 = 0, NX_BF16 = 1, NX_INT8 = 2, NX_INT4 = 3, NX_INT8_ROWS = 4 };

NX_API int nx_abi_version(void);
NX_API const char* nx_last_error(void);

/* Instruction sets, lowest first: baseline, avx2, avx512, avx512_bf16. The default is the highest one that
 * was built and that this CPU supports. nx_isa_levels: the usable ones, lowest first, separated by spaces. */
NX_API const char* nx_isa(void);
NX_API const char* nx_isa_levels(void);
NX_API int nx_set_isa(const char* name);

/* p = mean_t concat_e experts; gates = softmax(w2 gelu(w1 p + b1) + b2); out = sum_e gates_e experts_e. */
typedef struct {
    int64_t dtype;
    void* out;           /* T [B,T,H], or [B,H], the mean over T, if pooled */
    float* gates;        /* [B,E] */
    const void* experts; /* T [B,E,T,H] */
    const void* w1;      /* T [H,E*H] */
    const float* b1;     /* [H] */
    const void* w2;      /* T [E,H] */
    const float* b2;     /* [E] */
    float* scratch;      /* B*(E+1)*H */
    int64_t B, E, T, H, pooled;
    int64_t stride_b, stride_e, stride_t; /* of experts; the last is 1 */
} nx_expert_gate_args;
NX_API int nx_cpu_expert_gate(const nx_expert_gate_args* args);

/* Projections, cross-attention of each expert, its FFN, mean over time, gate, output projection. The weights
 * are those of nanoemox_kernels.fold_expert_fusion. */
typedef struct {
    int64_t dtype;
    void* token;                   /* T [B,W] */
    float* gates;                  /* [B,E] */
    float* attention;              /* [B,E,heads,Ta,Tv] */
    float* scratch;                /* nx_cpu_expert_fusion_scratch floats */
    const void* audio;             /* T [B,Ta,E*Da], contiguous */
    const void* vision;            /* T [B,Tv,E*Dv], contiguous */
    const void* audio_weight;      /* T [H,Da] */
    const float* audio_bias;       /* [H] */
    const void* vision_weight;     /* T [H,Dv] */
    const void* qkv;               /* T [E,3H,H] */
    const float* query_bias;       /* [E,H] */
    const void* out;               /* T [E,H,H] */
    const float* out_bias;         /* [E,H] */
    const float* norm;             /* [E,H] */
    const float* norm_bias;        /* [E,H] */
    const void* hidden;            /* T [E,H,H] */
    const float* hidden_bias;      /* [E,H] */
    const void* last;              /* T [E,H,H] */
    const float* last_bias;        /* [E,H] */
    const void* gate_hidden;       /* T [H,E*H] */
    const float* gate_hidden_bias; /* [H] */
    const void* gate;              /* T [E,H] */
    const float* gate_bias;        /* [E] */
    const void* project;           /* T [W,H] */
    const float* project_bias;     /* [W] */
    int64_t B, Ta, Tv, E, Da, Dv, H, heads, W;
    double eps;
} nx_expert_fusion_args;
NX_API int64_t nx_cpu_expert_fusion_scratch(int64_t B, int64_t Ta, int64_t Tv, int64_t E, int64_t H);
NX_API int nx_cpu_expert_fusion(const nx_expert_fusion_args* args);

/* Attention of folded queries over frames, then two linear layers with a GELU between them. The weights are
 * those of nanoemox_kernels.fold_temporal_xattn. */
typedef struct {
    int64_t dtype;
    void* tokens;              /* T [B,M,W] */
    float* attention;          /* [B,heads,M,T] */
    float* scratch;            /* B*M*(heads*C + P) */
    const void* x;             /* T [B,T,C], the last stride 1 */
    const void* scores;        /* T [heads,M,C] */
    const void* mix;           /* T [P,heads*C] */
    const float* mix_bias;     /* [P] */
    const void* project;       /* T [W,P] */
    const float* project_bias; /* [W] */
    int64_t B, T, C, M, heads, P, W, stride_b, stride_t;
} nx_temporal_xattn_args;
NX_API int nx_cpu_temporal_xattn(const nx_temporal_xattn_args* args);

/* hidden += update (update may be null), in place; y = LayerNorm(hidden), or a copy of hidden if weight is
 * null. */
typedef struct {
    int64_t dtype;
    void* y;            /* T [R,N,D], contiguous */
    void* hidden;       /* T [R,N,D], the last stride 1 */
    const void* update; /* T [R,N,D], the last stride 1, or null */
    const void* weight; /* T [D] or null */
    const void* bias;   /* T [D] or null */
    int64_t R, N, D, hidden_stride_r, hidden_stride_n, update_stride_r, update_stride_n;
    double eps;
} nx_residual_norm_args;
NX_API int nx_cpu_residual_norm(const nx_residual_norm_args* args);

/* out += weight * (row 0, or the mean over N if mean) of hidden. */
typedef struct {
    int64_t dtype;
    float* out;         /* [R,D], the last stride 1 */
    const void* hidden; /* T [R,N,D], the last stride 1 */
    int64_t R, N, D, mean, out_stride_r, hidden_stride_r, hidden_stride_n;
    double weight;
} nx_tap_pool_args;
NX_API int nx_cpu_tap_pool(const nx_tap_pool_args* args);

/* out = softmax(scale q k^T + bias) v, with scores and sums in fp32. If causal_offset is not 0, query m
 * attends to the first causal_offset + m keys only. */
typedef struct {
    int64_t dtype;
    void* out;        /* T [n,H,M,d]; here and below the last stride is 1 */
    const void* q;    /* T [n,H,M,d] */
    const void* k;    /* T [n,H,T,d] */
    const void* v;    /* T [n,H,T,d] */
    const void* bias; /* T [w,H,M,T] or null; item i has bias i % w */
    void* scratch;    /* nx_cpu_attention_scratch bytes, aligned to 64 */
    int64_t n, H, M, T, d, w, causal_offset;
    int64_t out_n, out_h, out_m, q_n, q_h, q_m, k_n, k_h, k_t, v_n, v_h, v_t, bias_w, bias_h, bias_m;
    double scale;
} nx_attention_args;
NX_API int64_t nx_cpu_attention_scratch(int64_t T, int64_t d);
NX_API int nx_cpu_attention(const nx_attention_args* args);

/* A weight matrix, row-major [rows, columns], in one of five formats:
 *
 * NX_F32, NX_BF16: data; scales is null.
 * NX_INT8: int8 data and bf16 scales [rows, columns / 64]; weight = scale * data.
 * NX_INT8_ROWS: int8 data and fp32 scales [rows]. The decode engine does not support this format.
 * NX_INT4: groups of 32 columns with bf16 scales [rows, columns / 32]. A byte holds column 64 j + i in its
 * low half and column 64 j + 32 + i in its high half (i < 32), each as the value plus 8.
 *
 * The number of columns of a quantised matrix is a multiple of 64. */
typedef struct {
    const void* data;
    const void* scales;
} nx_matrix;

enum {
    NX_RELU = 1,
    NX_SILU = 2,
    NX_GELU = 3,
    NX_GELU_TANH = 4
}; /* 0: no activation; NX_GELU is the erf form */
enum { NX_STORE = 0, NX_ADD = 1, NX_MULTIPLY = 2 }; /* how the result is combined with `out` */

/* out = activation(x W^T + bias), stored, added to out or multiplied into it, for many rows; W is NX_INT8,
 * NX_INT8_ROWS or NX_INT4. Blocks of 64 elements of a row of x are quantised with one scale each; with
 * NX_INT8_ROWS blocks of 128 or 256, if `run`, the largest block length, allows it. K is a multiple of 64. */
typedef struct {
    int64_t dtype;
    void* out;         /* T [M,N], the last stride 1 */
    const void* x;     /* T [M,K], the last stride 1 */
    nx_matrix w;       /* [N,K] */
    const float* bias; /* [N] or null */
    void* scratch;     /* nx_cpu_quantized_linear_scratch bytes, aligned to 64 */
    int64_t M, N, K, precision, activation, combine, stride_x, stride_out, run;
} nx_quantized_linear_args;
NX_API int64_t nx_cpu_quantized_linear_scratch(int64_t M, int64_t K);
NX_API int nx_cpu_quantized_linear(const nx_quantized_linear_args* args);

/* Reads n bytes once, on all threads together; returns a checksum. Measures the memory bandwidth. */
NX_API int64_t nx_cpu_read(const void* data, int64_t n);

/* The decode engine: one call per token runs every layer of a qwen2 or llama language model for B sequences.
 * It stores pointers to memory of the caller (weights, tables, cache) and has its own threads. Calls to one
 * engine must not overlap. */
typedef struct {
    nx_matrix q, k, v, o, gate, up, down;
    const float* input_norm; /* [width] */
    const float* post_norm;  /* [width] */
    const float* bias;       /* [(heads + 2 kv_heads) head_size], q, k, v concatenated, or null */
    const float *o_bias, *gate_bias, *up_bias, *down_bias; /* each may be null */
} nx_engine_layer;

typedef struct {
    int64_t precision;      /* of the layers' matrices: NX_F32, NX_BF16, NX_INT8 or NX_INT4 */
    int64_t kv_precision;   /* of k and v: the same as precision, or NX_F32 or NX_BF16 */
    int64_t head_precision; /* of the vocabulary head: NX_F32, NX_BF16 or NX_INT8 */
    int64_t dtype;          /* T, of embedding and cache: NX_F32 or NX_BF16 */
    int64_t layers, width, mlp, heads, kv_heads, head_size, vocab, slots, capacity, threads;
    const nx_engine_layer* layer; /* [layers] */
    const float* norm;            /* [width], the final one */
    nx_matrix head;               /* [vocab, width] */
    const void* exact_head;       /* T [vocab,width] or null: recomputes the best logits of an int8 head */
    const void* embedding;        /* T [vocab,width] */
    const float* cosines;         /* [capacity,head_size/2], indexed by position */
    const float* sines;
    void* keys; /* T [layers,slots,kv_heads,capacity,head_size], rotated */
    void* values;
    double eps;
} nx_engine_config;

typedef struct nx_engine nx_engine;

/* Returns null on failure, with a message in nx_last_error(). Copies the configuration and its layers. */
NX_API nx_engine* nx_engine_create(const nx_engine_config* config);
NX_API void nx_engine_destroy(nx_engine* engine);

/* Processes one token of each of B sequences, B <= slots. Sequence b occupies cache slot slots[b]; its token
 * is appended at positions[b], the number of tokens that the slot already holds. Input: ids [B], looked up in
 * the embedding, or embedded tokens fp32 [B,width]. Output: logits fp32 [B,vocab] and best [B], the first
 * index of the highest logit. */
NX_API int nx_engine_step(nx_engine* engine, int64_t B, const int64_t* slots, const int64_t* positions,
                          const int64_t* ids, const float* embedded, float* logits, int64_t* best);

#ifdef __cplusplus
}
#endif
#endif
