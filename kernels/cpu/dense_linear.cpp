// Products with dense weights: of a linear layer, and of adapters with their inputs.
#include "linear.h"

namespace {

constexpr int64_t kChunkBlocks = 8;    // that meet a tile of W one after the other

// To 4 rows of W, `apart` from each other, the last one instead of those that are missing.
void point_at(DenseTask &task, const void *weight, int64_t row, int64_t apart, int64_t rows, int64_t row_bytes) {
  for (int64_t s = 0; s < kStreams; ++s) {
    const int64_t at = std::min(row + s * apart, rows - 1);
    task.weights[s] = static_cast<const uint8_t *>(weight) + at * row_bytes;
  }
}

struct Product {
  const Linear &linear;
  const DenseKernels &kernels;
  const Blocks &blocks;
  int64_t row_bytes;  // of W

  explicit Product(const Linear &linear_)
      : linear(linear_), kernels(linear.dense), blocks(linear.dense_blocks),
        row_bytes(linear.task.k * linear.type_bytes()) {}

  // Columns tile * 16, ... of the rows in blocks first, ... before end. Stream s takes every fourth part of the
  // tile, so that it reads rows of W that follow each other.
  void multiply(int64_t tile, int64_t first, int64_t end) const {
    constexpr int64_t apart = kDenseTile / kStreams;
    alignas(64) float sums[kChunkBlocks * kMostDenseRows * kDenseTile];
    DenseTask task;
    task.steps = linear.task.k / kernels.step;
    task.rest = linear.task.k % kernels.step;
    task.sums_row = kDenseTile;
    task.sums_stream = apart;
    const int64_t row = blocks.first(first);
    for (int64_t block = first; block < end; ++block) {
      task.x_step = blocks.size(block) * kernels.step * kernels.value_bytes;
      task.x = linear.dense_block(block);
      for (int64_t i = 0; i < apart; ++i) {
        point_at(task, linear.task.weight, tile * kDenseTile + i, apart, linear.task.n, row_bytes);
        task.sums = sums + (blocks.first(block) - row) * kDenseTile + i;
        kernels.dot[blocks.size(block)](task);
      }
    }
    finish_tile(linear, sums, row, blocks.first(end) - row, tile * kDenseTile);
  }
};

}  // namespace

void multiply_dense(owl_pool *pool, const Linear &linear) {
  const Product product(linear);
  const int64_t count = product.blocks.count, tiles = (linear.task.n + kDenseTile - 1) / kDenseTile;
  const int64_t depth = count <= kChunkBlocks ? 1 : depth_of(pool, tiles);  // to meet a chunk while it is at hand
  parallel(pool, (tiles + depth - 1) / depth, [&](int64_t item) {
    for (int64_t first = 0; first < count; first += kChunkBlocks) {
      for (int64_t tile = item * depth; tile < std::min((item + 1) * depth, tiles); ++tile) {
        product.multiply(tile, first, std::min(first + kChunkBlocks, count));
      }
    }
  });
}

namespace {

// low[row][first .. first + 4) of one block of rows; rows of other adapters than their neighbours' one by one.
void shrink_part(const Linear &linear, int64_t block, int64_t first) {
  const DenseKernels &kernels = linear.dense;
  const owl_linear_task &task = linear.task;
  const int64_t rows = linear.dense_blocks.size(block), step_bytes = kernels.step * kernels.value_bytes;
  const int64_t row = linear.dense_blocks.first(block), row_bytes = task.k * linear.type_bytes();
  bool alike = true;
  for (int64_t m = 1; m < rows; ++m) alike = alike && linear.adapter(row + m) == linear.adapter(row);
  const int64_t taken = alike ? rows : 1;
  float sums[kMostDenseRows * kStreams];
  DenseTask dots;
  dots.x_step = rows * step_bytes;
  dots.steps = task.k / kernels.step;
  dots.rest = task.k % kernels.step;
  dots.sums = sums;
  dots.sums_row = kStreams;
  dots.sums_stream = 1;
  for (int64_t m = 0; m < rows; m += taken) {
    const int64_t adapter = linear.adapter(row + m);
    if (adapter < 0) continue;
    const int64_t ranks = linear.ranks(adapter), count = std::min(kStreams, ranks - first);
    if (count <= 0) continue;
    const uint8_t *a = static_cast<const uint8_t *>(task.lora_a) + adapter * task.rank * row_bytes;
    point_at(dots, a, first, 1, ranks, row_bytes);
    dots.x = linear.dense_block(block) + m * step_bytes;
    kernels.dot[taken](dots);
    for (int64_t i = 0; i < taken; ++i) {
      for (int64_t r = 0; r < count; ++r) {
        linear.low[(row + m + i) * task.rank + first + r] =
            sums[i * kStreams + r] * task.lora_scale[adapter * task.rank + first + r];
      }
    }
  }
}

}  // namespace

void shrink(owl_pool *pool, const Linear &linear) {
  const int64_t parts = (linear.task.rank + kStreams - 1) / kStreams;
  parallel(pool, linear.dense_blocks.count * parts,
           [&](int64_t item) { shrink_part(linear, item / parts, item % parts * kStreams); });
}
