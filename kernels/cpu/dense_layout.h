// How a linear layer with dense weights is computed, the same for every instruction set.
//
// Weights stay where they are, (n, k) row-major. Activations: blocks of up to `most_rows` rows, within a block
// [step][row][kStep values], so that a step of all rows lies in a line; the last step is filled up with zeros.
// Sums run along the inputs, lane by lane; the lanes of a sum are added at its end.
#pragma once

#include <cstdint>

constexpr int64_t kStreams = 4;        // rows of the weight that are read side by side
constexpr int64_t kDenseTile = 16;     // rows of the weight that an item of work takes
constexpr int kMostDenseRows = 6;

// What a kernel computes: 4 rows of the weight times the rows of one block.
struct DenseTask {
  const void *weights[kStreams];
  const uint8_t *x;
  int64_t x_step;  // bytes from one step to the next
  int64_t steps;   // whole ones; then `rest` inputs
  int64_t rest;
  float *sums;     // row m, stream s at sums[m * sums_row + s * sums_stream]
  int64_t sums_row, sums_stream;
};

// One instruction set and one type of weights.
struct DenseKernels {
  int most_rows;
  int64_t step, value_bytes;                               // inputs of a step; bytes of a packed value
  void (*dot[kMostDenseRows + 1])(const DenseTask &task);  // by rows of a block
  void (*pack)(const void *row, int64_t k, uint8_t *out, int64_t out_step);  // out_step in bytes

  int64_t steps(int64_t k) const { return (k + step - 1) / step; }
  int64_t row_bytes(int64_t k) const { return steps(k) * step * value_bytes; }
};

// Null where the compiler cannot make it; whether this machine can run it is asked elsewhere.
const DenseKernels *dense_bf16_avx512bf16();
const DenseKernels *dense_f32_avx512();
const DenseKernels *dense_bf16_avx512();
const DenseKernels *dense_f32_avx2();
const DenseKernels *dense_bf16_avx2();
const DenseKernels *dense_f32_neon();
const DenseKernels *dense_bf16_neon();
const DenseKernels *dense_f32_portable();
const DenseKernels *dense_bf16_portable();
