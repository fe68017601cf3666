// libowl_cpu: operations of owl_fast on the CPU, behind a plain C ABI.
//
// Every function takes contiguous row-major arrays, keeps no state, allocates nothing, and may be called from
// any thread. Callers check shapes and types; here sizes of zero are allowed and null pointers are not.
// bf16 values travel as uint16_t bit patterns.
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
#define OWL_ABI_VERSION 1

OWL_API int32_t owl_abi_version();

// out[r][i] = round(x[r][i] / sqrt(mean_i(x[r][i]^2) + eps)) * weight[i], rows of `width` values.
// `round` is to the type of x. out may be x.
OWL_API void owl_rms_norm_f32(const float *x, const float *weight, float *out, int64_t rows, int64_t width,
                              float eps);
OWL_API void owl_rms_norm_bf16(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t rows,
                               int64_t width, float eps);
