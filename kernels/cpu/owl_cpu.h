// libowl_cpu: operations of owl_fast on the CPU, behind a plain C ABI.
//
// Every function takes contiguous row-major arrays, keeps no state, allocates nothing (a pool apart), and may be
// called from any thread. Callers check shapes and types; here sizes of zero are allowed and null pointers are
// not, except for a pool: without one the calling thread does all the work. Results do not depend on the pool.
// bf16 and fp16 values travel as uint16_t bit patterns.
#pragma once

#include <cstdint>

#if defined(__GNUC__)
#define OWL_API extern "C" __attribute__((visibility("default")))
#else
#define OWL_API extern "C"
#endif

// One body, compiled for several instruction sets; the dynamic loader takes the best this machine has.
// (The thread sanitizer cannot run what makes that choice, which comes before the sanitizer itself.)
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__)
#define OWL_MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define OWL_MULTIVERSION
#endif

// Raised whenever a signature below changes its meaning; owl_fast/native.py refuses any other number.
#define OWL_ABI_VERSION 5

OWL_API int32_t owl_abi_version();

// out[r][i] = round(x[r][i] / sqrt(mean_i(x[r][i]^2) + eps)) * weight[i], rows of `width` values.
// `round` is to the type of x. out may be x.
OWL_API void owl_rms_norm_f32(const float *x, const float *weight, float *out, int64_t rows, int64_t width,
                              float eps);
OWL_API void owl_rms_norm_bf16(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t rows,
                               int64_t width, float eps);

// Threads that wait for work: they spin for a moment, then yield, then sleep. The calling thread works too, so
// `threads` counts it. A pool serves one call at a time; a call that finds it taken (by another thread, or in
// the child of a fork, where no thread is left) runs alone. Null when the threads cannot be started.
typedef struct owl_pool owl_pool;
OWL_API owl_pool *owl_pool_create(int32_t threads);
OWL_API int32_t owl_pool_threads(const owl_pool *pool);
// Waits for the threads to end. No call may use the pool any more.
OWL_API void owl_pool_destroy(owl_pool *pool);

// How the weight W (n, k) of a linear layer is held. The quantized ones (kernels/weights.py):
//   OWL_INT8: q (n, k), scale (n) fp32; group is 0;
//   OWL_INT4: q (n, ceil(k / 2)) bytes with two values each, scale (n, ceil(k / group)) fp16;
//   OWL_INT4_NARROW: the same, where all scales fit a byte: (bits & 0x407f) == 0, below 2 with 3 bits of mantissa.
// They are repacked once, into owl_quantized_bytes() bytes at a multiple of 64 (quantized_layout.h).
enum { OWL_DENSE = 0, OWL_INT8 = 1, OWL_INT4 = 2, OWL_INT4_NARROW = 3 };
OWL_API int64_t owl_quantized_bytes(int32_t form, int64_t n, int64_t k, int64_t group);
OWL_API void owl_quantized_pack(owl_pool *pool, int32_t form, const uint8_t *q, const void *scale, int64_t n,
                                int64_t k, int64_t group, uint8_t *packed);

// y = residual + activation(norm(x) W^T + bias + update), every linear layer there is.
//
// x (rows, k), norm (k), bias (n), residual and y (rows, n): of one type. With OWL_SWIGLU n counts gate and up,
// gate first, and residual and y are (rows, n / 2). Sums and what follows them are fp32, rounded once at the end.
// norm: as owl_rms_norm, with eps.
// update: lora_scale[i] (lora_a[i] x) from the right by lora_b[i], for the adapter i = owner[row], none where that
// is -1, 0 without owner; lora_a (adapters, rank, k) and lora_b (adapters, n, rank) in the type of x, lora_scale
// (adapters, rank); ranks at an adapter's end whose scale is 0 are not there.
// Quantized weights meet x rounded to int8 in groups of a row (of the weight's size; 128 for int8) with one scale
// each: kernels/quantized_linear.py has the definition. Dense ones, in the type of x, are read where they are.
enum { OWL_F32 = 0, OWL_BF16 = 1 };                         // type
enum { OWL_NONE = 0, OWL_SWIGLU = 1, OWL_QUICK_GELU = 2 };  // activation
typedef struct owl_linear_task {
  const void *x, *weight;
  const void *norm, *bias, *residual;   // each null where there is none
  const void *lora_a, *lora_b;          // both null, or none
  const float *lora_scale;
  const int32_t *owner;
  void *y;
  int64_t rows, n, k, group, rank;
  int32_t type, form, activation;
  int32_t path;  // a place in owl_linear_paths()
  float eps;
} owl_linear_task;

// The instruction sets this machine can use, best first, with commas between. On quantized weights all give the
// same bits; on dense ones, and in updates, they add in different orders. A row's bits depend on nothing else.
OWL_API const char *owl_linear_paths();
// Bytes of workspace, at a multiple of 64, that owl_linear needs.
OWL_API int64_t owl_linear_workspace(const owl_linear_task *task);
OWL_API void owl_linear(owl_pool *pool, const owl_linear_task *task, uint8_t *workspace);

// Attention, softmax(q k^T / sqrt(width)) v, of `heads` query heads over kv_heads heads of keys and values, each
// shared by heads / kv_heads of them: kernels/paged_attention.py, decode_attention.py, varlen_attention.py and
// kv_append.py have the definitions. A query's result depends on the path, itself and its own keys alone.
// Limits: width at most 256, and heads / kv_heads * (width, rounded up to 32) at most 12288.
// x_row and x_head: x[n][h][i] lies x_row * n + x_head * h + i values behind x.
typedef struct owl_attention_task {
  int64_t type;  // of queries, new keys and values, angles and results: 0 fp32, 1 bf16
  int64_t rows, sequences, heads, kv_heads, width;
  const void *query, *key, *value;  // of all rows
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;
  void *out;              // (rows, heads, width), contiguous
  const int32_t *bounds;  // (sequences + 1): the rows of each
  // Rotary embedding. Row n is rotated by angle positions[n], or n if that is null; a missing angle is NaN.
  const void *cos, *sin;  // (angles, width / 2)
  const int64_t *positions;
  int64_t angles;
  // The cache: blocks of block_size * kv_heads vectors of `width`, that of row r and head h of a block the
  // (r * cache_row + h * cache_head)-th of it. Slot s is block s / block_size, row s % block_size.
  int64_t cache_type;              // 0 fp32, 1 bf16, 2 int8 with scales
  void *key_cache, *value_cache;
  float *key_scale, *value_scale;  // one for each vector, in their order
  int64_t block_size, cache_row, cache_head;
  const int64_t *slots;     // (rows): where a row's key and value go; negative: nowhere
  const int32_t *tables;    // [sequence * table_row + i]: its i-th block
  int64_t table_row;
  const int32_t *lengths;   // [sequence * length_step]: its keys, those of its rows included; 0 gives zeros
  int64_t length_step;
} owl_attention_task;

// path: a place in owl_vector_paths(), as in owl_linear_task; here paths differ in bits.
OWL_API const char *owl_vector_paths();
// out = rotated queries; rotated keys and the values go into the cache.
OWL_API void owl_rotary_append(owl_pool *pool, const owl_attention_task *task, int32_t path);
// Queries, already rotated, over the cache, which has their own keys: row i of n of a sequence sees the first
// length - n + i + 1 keys.
OWL_API void owl_paged_attention(owl_pool *pool, const owl_attention_task *task, int32_t path);
// Both at once for one row per sequence.
OWL_API void owl_decode_attention(owl_pool *pool, const owl_attention_task *task, int32_t path);
// Queries over key and value: each row sees the rows of its own sequence up to itself.
OWL_API void owl_packed_attention(owl_pool *pool, const owl_attention_task *task, int32_t path);

// One part of the keys and values of all pictures: (pictures, count, heads, width) each, of any strides.
typedef struct owl_key_part {
  const void *key, *value;
  int64_t count, key_picture, key_row, key_head, value_picture, value_row, value_head;
} owl_key_part;

// Every query of a picture over all keys of the picture, parts one behind the other. out: contiguous.
typedef struct owl_whole_attention_task {
  int64_t type, pictures, queries, heads, width;
  const void *query;
  int64_t query_picture, query_row, query_head;
  void *out;
  owl_key_part part[3];
} owl_whole_attention_task;
OWL_API void owl_whole_attention(owl_pool *pool, const owl_whole_attention_task *task, int32_t path);

// y = exp(x), error at most 2 ulp: what softmax and activations are made of.
OWL_API void owl_exp(const float *x, float *y, int64_t count, int32_t path);

// Rows of `width` values of one type (0 fp32, 1 bf16), weights and bias too: kernels/layer_norm.py, swiglu.py and
// quick_gelu.py have the definitions. fp32 inside, rounded once. weight and bias may be null.
OWL_API void owl_layer_norm(owl_pool *pool, int32_t type, const void *x, const void *weight, const void *bias,
                            void *out, int64_t rows, int64_t width, float eps, int32_t path);
// gate_up: (rows, 2 width), gate first.
OWL_API void owl_swiglu(owl_pool *pool, int32_t type, const void *gate_up, void *out, int64_t rows, int64_t width,
                        int32_t path);
OWL_API void owl_quick_gelu(owl_pool *pool, int32_t type, const void *x, const void *bias, void *out, int64_t rows,
                            int64_t width, int32_t path);

// Gradients dx of owl_swiglu and owl_rms_norm from dy, with x (for swiglu gate_up) as forward had it and dy of the
// rows' results; weights are frozen. fp32 inside, rounded once.
OWL_API void owl_swiglu_backward(owl_pool *pool, int32_t type, const void *gate_up, const void *dy, void *dx,
                                 int64_t rows, int64_t width, int32_t path);
OWL_API void owl_rms_norm_backward(owl_pool *pool, int32_t type, const void *x, const void *weight, const void *dy,
                                   void *dx, int64_t rows, int64_t width, float eps, int32_t path);

// Rows of an OWL_INT8 or OWL_INT4 weight written out, in fp32 (type 0) or bf16 (1): out (rows, width), contiguous.
// Row r of q lies r * q_row bytes behind q; scale is fp32: (rows), or of int4 (rows, ceil(width / group)).
OWL_API void owl_dequantize(owl_pool *pool, int32_t form, int32_t type, const uint8_t *q, int64_t q_row,
                            const float *scale, void *out, int64_t rows, int64_t width, int64_t group, int32_t path);
