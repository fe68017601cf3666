// The stages of owl_linear, each over the pool: inputs are normed and packed, adapters multiplied down, products
// taken tile by tile and finished while they are at hand; SwiGLU, which needs two far tiles, comes at the end.
#pragma once

#include <algorithm>

#include "linear_paths.h"
#include "owl_cpu.h"
#include "pool.h"

constexpr int64_t kTile = 16;              // columns that are finished at once
static_assert(kTile == kTileRows && kTile == kDenseTile, "both kinds of tiles are finished alike");

inline int64_t rounded_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// How many tiles an item of work takes, one after the other: so few that a slow thread leaves the others little
// to wait for.
inline int64_t depth_of(const owl_pool *pool, int64_t tiles) {
  constexpr int64_t kItemsPerThread = 8, kMost = 4;
  const int64_t fair = tiles / ((pool == nullptr ? 1 : owl_pool_threads(pool)) * kItemsPerThread);
  return std::clamp<int64_t>(fair, 1, kMost);
}

// Blocks of rows, as equal as whole rows allow.
struct Blocks {
  int64_t rows, count;

  Blocks(int64_t rows_, int64_t most) : rows(rows_), count((rows_ + most - 1) / most) {}
  int64_t first(int64_t block) const { return block * rows / count; }
  int64_t size(int64_t block) const { return first(block + 1) - first(block); }
  int64_t of(int64_t row) const { return ((row + 1) * count - 1) / rows; }
};

// One call: the task, what this machine makes of it, and where its intermediate results lie.
struct Linear {
  const owl_linear_task &task;
  const QuantizedKernels &quantized;
  const DenseKernels &dense;
  const Layout layout;           // of a quantized weight
  const Blocks blocks;           // of the rows of x, for the product
  const Blocks dense_blocks;     // the same where they meet dense weights: an adapter's, or the layer's own
  bool is_quantized, has_update;
  uint8_t *normed;               // (rows, k) in the type of x; null without norm
  int8_t *x8;                    // quantized_layout.h
  float *x_scale;
  int32_t *start;
  uint8_t *packed_x;             // dense_layout.h
  float *low;                    // (rows, rank), scaled
  float *gate_up;                // (rows, n); null without SwiGLU
  int64_t bytes;                 // of all of these

  Linear(const owl_linear_task &task, uint8_t *workspace);

  int64_t type_bytes() const { return task.type == OWL_F32 ? 4 : 2; }
  int64_t adapter(int64_t row) const { return task.owner == nullptr ? 0 : task.owner[row]; }
  // Of an adapter, without those at the end that have no scale: they fill it up and are nowhere read.
  int64_t ranks(int64_t adapter) const {
    const float *scale = task.lora_scale + adapter * task.rank;
    int64_t count = task.rank;
    while (count > 0 && scale[count - 1] == 0.0f) --count;
    return count;
  }
  const uint8_t *dense_block(int64_t block) const {
    return packed_x + dense_blocks.first(block) * dense.row_bytes(task.k);
  }
};

void pack_inputs(owl_pool *pool, const Linear &linear);
void shrink(owl_pool *pool, const Linear &linear);
void multiply_quantized(owl_pool *pool, const Linear &linear);
void multiply_dense(owl_pool *pool, const Linear &linear);
// sums (rows, kTile) of rows row, row + 1, ... and columns column, column + 1, ..., as far as there are some, which
// adds to them and puts the result in its place.
void finish_tile(const Linear &linear, float *sums, int64_t row, int64_t rows, int64_t column);
void finish_swiglu_part(const Linear &linear, int64_t row, int64_t column);  // some columns from there on
void finish_swiglu(owl_pool *pool, const Linear &linear);
