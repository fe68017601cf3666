// Everything but linear layers, once for every instruction set: attention, norms, activations, their gradients,
// quantized weights written out.
#pragma once

#include <cstdint>

#include "owl_cpu.h"

constexpr int64_t kKeys = 64;         // of a block
constexpr int64_t kAhead = 64;        // rows of keys or values that are on their way while one is read
constexpr int64_t kWidestHead = 256;
constexpr int64_t kTaskValues = 12288;  // of all queries of a task: 48 KB of fp32

// Up to kKeys keys of one head, in order; those beyond `count` repeat the last one.
struct KeyBlock {
  int64_t count;
  const void *place[2 * kKeys + kAhead];  // where they lie: keys, values, the first keys of the next block
  float key_factor[kKeys];    // times the product with the query: the exponent of 2 that softmax takes
  float value_factor[kKeys];  // times the value: an int8 cache's scale
};

// Some queries that share a head of the keys, those from row `offset` of their sequence on. Row r of the
// sequence is of token r / group: it sees the first visible + (r / group) * step keys.
struct AttentionTask {
  int64_t rows, width;
  const void *const *query;  // (rows) places
  void *const *out;
  int64_t group, offset, visible, step;
  bool scaled_values;  // whether value_factor is anything but 1
  void (*locate)(const void *keys, int64_t first, int64_t count, KeyBlock *block);
  const void *keys;
  int64_t next;  // bytes from its keys and values to those that are likely to be read behind them

  int64_t seen(int64_t row) const { return visible + (offset + row) / group * step; }
};
using Attend = void (*)(const AttentionTask &task);

// Rotary embedding of one head x of `width` values: y[i] = x[i] cos[i] - x[i + half] sin[i] and its counterpart.
using Rotate = void (*)(const void *x, const void *cos, const void *sin, int64_t width, void *y);
// One head x as a cache keeps it; scale: of int8 alone.
using Keep = void (*)(const void *x, int64_t width, void *kept, float *scale);

using Norm = void (*)(const void *x, const void *weight, const void *bias, int64_t width, float eps, void *y);
// swiglu: gate and up; quick_gelu: x and bias.
using Activate = void (*)(const void *a, const void *b, int64_t width, void *y);

using NormGradient = void (*)(const void *x, const void *weight, const void *dy, int64_t width, float eps, void *dx);
using GateGradient = void (*)(const void *gate, const void *up, const void *dy, int64_t width, void *dgate, void *dup);

// One row of a quantized weight: q, and a scale for every `group` of its values.
using Expand = void (*)(const uint8_t *q, const float *scale, int64_t width, int64_t group, void *out);

struct Vectors {
  const char *name;
  Rotate rotate[2];  // fp32, bf16
  Keep keep[2][3];   // of fp32, bf16; as fp32, bf16, int8
  Attend attend[2][3];  // query fp32, bf16; keys and values fp32, bf16, int8
  Norm layer_norm[2];  // fp32, bf16
  Activate swiglu[2], quick_gelu[2];
  NormGradient rms_norm_gradient[2];
  GateGradient swiglu_gradient[2];
  Expand int8[2], int4[2];  // to fp32, bf16
  void (*exp)(const float *x, float *y, int64_t count);
};

// Null where the compiler cannot make it; whether this machine can run it is asked elsewhere.
const Vectors *vectors_avx512bf16();
const Vectors *vectors_avx512();
const Vectors *vectors_avx2();
const Vectors *vectors_neon();
const Vectors *vectors_portable();

const Vectors &vectors_of(int32_t path);  // a place in owl_vector_paths()
