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
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__)
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

// Linear layers with quantized weights W (n, k), in two forms (kernels/weights.py):
//   group > 0: int4, q (n, ceil(k / 2)) bytes with two values each, scale (n, ceil(k / group)) fp16;
//   group = 0: int8, q (n, k), scale (n) fp32.
// They are repacked once, into owl_quantized_bytes() bytes at a multiple of 64 (quantized_layout.h).
OWL_API int64_t owl_quantized_bytes(int64_t n, int64_t k, int64_t group);
OWL_API void owl_quantized_pack(owl_pool *pool, const uint8_t *q, const void *scale, int64_t n, int64_t k,
                                int64_t group, uint8_t *packed);

// y[m][n] = sum_k round(x)[m][k] W[n][k], where round() takes groups of a row (of the weight's size; 128 for
// int8) to int8 with one scale each: kernels/quantized_linear.py has the definition. x, y: fp32, or bf16.
// workspace: owl_quantized_workspace() bytes at a multiple of 64. path: a place in owl_quantized_paths(), which
// names the instruction sets this machine can use, best first, with commas between; all give the same bits.
OWL_API const char *owl_quantized_paths();
OWL_API int64_t owl_quantized_workspace(int64_t rows, int64_t k, int64_t group);
OWL_API void owl_quantized_linear_f32(owl_pool *pool, const uint8_t *packed, const float *x, float *y,
                                      int64_t rows, int64_t n, int64_t k, int64_t group, uint8_t *workspace,
                                      int32_t path);
OWL_API void owl_quantized_linear_bf16(owl_pool *pool, const uint8_t *packed, const uint16_t *x, uint16_t *y,
                                       int64_t rows, int64_t n, int64_t k, int64_t group, uint8_t *workspace,
                                       int32_t path);
