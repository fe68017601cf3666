// How packed weights and quantized activations lie in memory, the same for every instruction set.
//
// Weights: tiles of 16 output rows, missing rows filled with zeros. Within a tile, groups of inputs one after
// the other, each filled up with zeros to whole steps. A step is 64 bytes, 4 for each row:
//   int4: 8 inputs; byte j of a row holds inputs j (low half) and j + 4 (high half), each as q in 0..15
//   int8: 4 inputs, as q + 128
// Behind all tiles the scales: int4 [tile][group][16] fp16, or of a byte each, which is the upper one of fp16 moved
// by one exponent bit that is not set and a bit of mantissa; int8 [tile][16] fp32.
//
// Activations: blocks of up to 12 rows. Within a block [input / 4][row][4] int8, so that one step reads its
// inputs of all rows in a line; [group][row] fp32 scales; [group][row] int32 where sums start, which takes back
// what makes the weights' bytes unsigned.
#pragma once

#include <cstdint>

#include "owl_cpu.h"

constexpr int64_t kTileRows = 16;
constexpr int64_t kStepBytes = 64;
constexpr int64_t kInt8Group = 128;  // of activations, where the weights have no groups
constexpr int kMostStreams = 4;
constexpr int kForms = OWL_INT4_NARROW + 1;

struct Layout {
  int64_t n, k;
  int32_t form;
  bool int4;
  int64_t group, step;  // inputs of each
  int64_t groups, steps, last_steps;  // of a row; of a group; of the last group
  int64_t tiles, tile_bytes;

  Layout(int32_t form_, int64_t n_, int64_t k_, int64_t group_)
      : n(n_), k(k_), form(form_), int4(form >= OWL_INT4), group(int4 ? group_ : kInt8Group), step(int4 ? 8 : 4) {
    groups = (k + group - 1) / group;
    steps = (group + step - 1) / step;
    last_steps = groups > 0 ? (k - (groups - 1) * group + step - 1) / step : 0;
    tiles = (n + kTileRows - 1) / kTileRows;
    tile_bytes = row_steps() * kStepBytes;
  }

  int64_t row_steps() const { return groups > 0 ? (groups - 1) * steps + last_steps : 0; }
  int64_t padded_k() const { return row_steps() * step; }
  int64_t scale_size() const { return form == OWL_INT4_NARROW ? 1 : int4 ? 2 : 4; }
  int64_t scale_bytes() const { return kTileRows * (int4 ? groups : 1) * scale_size(); }  // of a tile
};

// What a tile kernel computes: `streams` tiles times the rows of one block.
struct TileTask {
  const uint8_t *weights[kMostStreams];
  const void *scales[kMostStreams];
  const int8_t *x;
  const float *x_scale;
  const int32_t *start;
  int64_t groups, steps, last_steps;
  float *sums;  // [stream][row][16]
};
using TileKernel = void (*)(const TileTask &task);

// Rows [first, first + rows) of x, in one block at the given places.
struct RowTask {
  int8_t *x;
  float *x_scale;
  int32_t *start;
  int64_t rows, row;  // of the block; the one to quantize
  const Layout *layout;
};

constexpr int kMostRows = 12;

// One instruction set. few: for a single block of rows, as many tiles at once as `streams` says; many: for more
// blocks of rows, `least_streams` tiles at once. By form of the weight; then by rows of a block.
struct QuantizedKernels {
  int most_rows, least_streams;
  int streams[kMostRows + 1];
  TileKernel few[kForms][kMostRows + 1], many[kForms][kMostRows + 1];
  void (*quantize_f32)(const float *row, const RowTask &task);
  void (*quantize_bf16)(const uint16_t *row, const RowTask &task);
};

// Null where the compiler cannot make it; whether this machine can run it is asked elsewhere.
const QuantizedKernels *quantized_avx512();
const QuantizedKernels *quantized_avxvnni();
const QuantizedKernels *quantized_avx2();
const QuantizedKernels *quantized_neon();
const QuantizedKernels *quantized_portable();
