// The product of a linear layer with int4 or int8 weights and int8 activations: who computes what.
#include "linear.h"

namespace {

struct Product {
  const Linear &linear;
  const Layout &layout;
  const QuantizedKernels &kernels;
  const Blocks &blocks;
  int64_t streams, depth;  // an item: `streams` runs of `depth` tiles, read side by side

  Product(const Linear &linear_, const owl_pool *pool)
      : linear(linear_), layout(linear.layout), kernels(linear.quantized), blocks(linear.blocks) {
    streams = blocks.count == 1 ? kernels.streams[blocks.rows] : kernels.least_streams;
    depth = depth_of(pool, layout.tiles / streams);
  }

  int64_t items() const { return (layout.tiles + streams * depth - 1) / (streams * depth); }

  // The tiles first, first + depth, ... (the last one again where there are no more), for all rows.
  void multiply(int64_t first) const {
    TileTask task;
    int64_t tile[kMostStreams];
    const uint8_t *packed = static_cast<const uint8_t *>(linear.task.weight);
    const uint8_t *scales = packed + layout.tiles * layout.tile_bytes;
    for (int64_t s = 0; s < streams; ++s) {
      tile[s] = std::min(first + s * depth, layout.tiles - 1);
      task.weights[s] = packed + tile[s] * layout.tile_bytes;
      task.scales[s] = scales + tile[s] * layout.scale_bytes();
    }
    alignas(64) float sums[kMostStreams * kMostRows * kTileRows];
    task.groups = layout.groups;
    task.steps = layout.steps;
    task.last_steps = layout.last_steps;
    task.sums = sums;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t row = blocks.first(block), rows = blocks.size(block);
      task.x = linear.x8 + row * layout.padded_k();
      task.x_scale = linear.x_scale + row * layout.groups;
      task.start = linear.start + row * layout.groups;
      (blocks.count == 1 ? kernels.few : kernels.many)[layout.form][rows](task);
      for (int64_t s = 0; s < streams && first + s * depth < layout.tiles; ++s) {
        finish_tile(linear, sums + s * rows * kTileRows, row, rows, tile[s] * kTileRows);
      }
    }
  }
};

}  // namespace

void multiply_quantized(owl_pool *pool, const Linear &linear) {
  const Product product(linear, pool);
  parallel(pool, product.items(), [&](int64_t item) {
    const int64_t first = item * product.streams * product.depth;
    for (int64_t i = 0; i < product.depth; ++i) product.multiply(first + i);
  });
}
