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
#define OWL_ABI_VERSION 3

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
// (adapters, rank).
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
