// Linear layers with int4 or int8 weights and int8 activations: packing, and who computes what.
#include <sys/mman.h>

#include <cstring>

#include "machine.h"
#include "owl_cpu.h"
#include "pool.h"
#include "quantized_layout.h"

namespace {

constexpr int64_t kItemsPerThread = 8;    // so that a slow thread leaves the others little to wait for
constexpr int64_t kMostDepth = 4;         // tiles one after the other in a stream, within an item
constexpr int64_t kFewValues = 1 << 15;   // activations that are quantized sooner than other threads wake up

const PathList<Path> &paths() {
  static const PathList<Path> found = [] {
    const Machine &has = machine();
    PathList<Path> list;
    list.add(path_avx512, has.avx512vnni);
    list.add(path_avxvnni, has.avxvnni);
    list.add(path_avx2, has.avx2);
    list.add(path_neon, has.dotprod);
    list.add(path_portable, true);
    return list;
  }();
  return found;
}

inline int64_t rounded_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Weights are read in long streams: fewer, larger pages make this cheaper. A wish that may stay unheard.
void ask_for_large_pages(uint8_t *data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1u << 21;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (from < to) madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE);
#endif
}

// Value k of a row as it is stored; beyond the end what stands for zero.
inline uint32_t value_at(const Layout &layout, const uint8_t *row, int64_t k, int64_t end) {
  if (!layout.int4) return k < end ? row[k] ^ 0x80u : 0x80u;
  if (k >= end) return 8;
  return k % 2 == 0 ? row[k / 2] & 15u : row[k / 2] >> 4;
}

// Four int4 values of 16 bits, each into a byte of its own.
inline uint32_t spread(uint32_t four) {
  return (four & 0xfu) | (four & 0xf0u) << 4 | (four & 0xf00u) << 8 | (four & 0xf000u) << 12;
}

// Four bytes of a step, for one row whose values end before `end`.
inline uint32_t bytes_of(const Layout &layout, const uint8_t *row, int64_t k, int64_t end) {
  uint32_t bytes = 0;
  for (int j = 0; j < 4; ++j) {
    uint32_t byte = value_at(layout, row, k + j, end);
    if (layout.int4) byte |= value_at(layout, row, k + j + 4, end) << 4;
    bytes |= byte << 8 * j;
  }
  return bytes;
}

// The same where all values are there and lie next to each other, for many steps.
template <bool kInt4>
inline void pack_whole_steps(const uint8_t *from, int64_t steps, uint8_t *out) {
  for (int64_t step = 0; step < steps; ++step) {
    uint32_t bytes;  // both kinds of machine put the low byte first
    std::memcpy(&bytes, from + 4 * step, sizeof bytes);
    bytes = kInt4 ? spread(bytes & 0xffffu) | spread(bytes >> 16) << 4 : bytes ^ 0x80808080u;
    std::memcpy(out + kStepBytes * step, &bytes, sizeof bytes);
  }
}

// One row of one group: its values first, first + 1, ... before `end`.
inline void pack_row(const Layout &layout, const uint8_t *row, int64_t first, int64_t end, int64_t steps,
                     uint8_t *out) {
  int64_t whole = end > first ? (end - first) / layout.step : 0;
  if (!layout.int4) {
    pack_whole_steps<false>(row + first, whole, out);
  } else if (first % 2 == 0) {
    pack_whole_steps<true>(row + first / 2, whole, out);
  } else {
    whole = 0;
  }
  for (int64_t step = whole; step < steps; ++step) {
    const uint32_t bytes = bytes_of(layout, row, first + step * layout.step, end);
    std::memcpy(out + kStepBytes * step, &bytes, sizeof bytes);
  }
}

// Row by row: 16 at once, often a power of two apart, would share few lines of the cache.
void pack_tile(const Layout &layout, const uint8_t *q, int64_t tile, uint8_t *out) {
  const int64_t row_bytes = layout.int4 ? (layout.k + 1) / 2 : layout.k;
  for (int64_t g = 0; g < layout.groups; ++g) {
    const int64_t first = g * layout.group, last = smaller(first + layout.group, layout.k);
    const int64_t steps = g + 1 < layout.groups ? layout.steps : layout.last_steps;
    for (int64_t lane = 0; lane < kTileRows; ++lane) {
      const int64_t row = tile * kTileRows + lane;
      const uint8_t *from = q + smaller(row, layout.n - 1) * row_bytes;
      pack_row(layout, from, first, row < layout.n ? last : 0, steps, out + 4 * lane);
    }
    out += steps * kStepBytes;
  }
}

void pack_scales(const Layout &layout, const void *scale, int64_t tile, uint8_t *out) {
  const int64_t width = layout.int4 ? layout.groups : 1, size = layout.int4 ? 2 : 4;
  uint8_t *to = out + tile * kTileRows * width * size;
  for (int64_t g = 0; g < width; ++g) {
    for (int64_t lane = 0; lane < kTileRows; ++lane, to += size) {
      const int64_t row = tile * kTileRows + lane;
      std::memset(to, 0, static_cast<size_t>(size));
      if (row >= layout.n) continue;
      std::memcpy(to, static_cast<const uint8_t *>(scale) + (row * width + g) * size, static_cast<size_t>(size));
    }
  }
}

// Where the activations lie; blocks are as equal as whole rows allow.
struct Activations {
  int8_t *x;
  float *x_scale;
  int32_t *start;
  int64_t rows, blocks;

  Activations(const Layout &layout, uint8_t *workspace, int64_t rows_, int64_t most_rows)
      : rows(rows_), blocks((rows_ + most_rows - 1) / most_rows) {
    x = reinterpret_cast<int8_t *>(workspace);
    x_scale = reinterpret_cast<float *>(workspace + rounded_up(rows * layout.padded_k(), 64));
    start = reinterpret_cast<int32_t *>(x_scale + rows * layout.groups);
  }

  int64_t first(int64_t block) const { return block * rows / blocks; }
};

inline void put(float value, float *to) { *to = value; }

// Round to nearest even, as torch does; NaN stays NaN (rounding its bits could turn it into infinity).
inline void put(float value, uint16_t *to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *to = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

inline void quantize(const Path &path, const float *row, const RowTask &task) { path.quantize_f32(row, task); }
inline void quantize(const Path &path, const uint16_t *row, const RowTask &task) {
  path.quantize_bf16(row, task);
}

template <typename T>
struct Product {
  const Layout layout;
  const Path &path;
  const Activations activations;
  const uint8_t *packed;
  T *y;
  int64_t streams, depth;  // an item: `streams` runs of `depth` tiles, read side by side

  Product(const Layout &layout_, const Path &path_, const uint8_t *packed_, T *y_, int64_t rows,
          uint8_t *workspace, int64_t threads)
      : layout(layout_), path(path_), activations(layout, workspace, rows, path_.most_rows), packed(packed_),
        y(y_) {
    streams = activations.blocks == 1 ? path.streams[rows] : path.wide;
    const int64_t fair = layout.tiles / (streams * threads * kItemsPerThread);
    depth = fair < 1 ? 1 : smaller(fair, kMostDepth);
  }

  int64_t items() const { return (layout.tiles + streams * depth - 1) / (streams * depth); }

  void quantize_rows(owl_pool *pool, const T *x) const {
    const auto row = [&](int64_t m) {
      const int64_t block = ((m + 1) * activations.blocks - 1) / activations.rows;
      const int64_t first = activations.first(block), last = activations.first(block + 1);
      const RowTask task = {activations.x + first * layout.padded_k(),
                            activations.x_scale + first * layout.groups,
                            activations.start + first * layout.groups,
                            last - first,
                            m - first,
                            &layout};
      quantize(path, x + m * layout.k, task);
    };
    parallel(activations.rows * layout.k > kFewValues ? pool : nullptr, activations.rows, row);
  }

  // The tiles first, first + depth, ... (the last one again where there are no more), for all rows.
  void multiply(int64_t first, int64_t end) const {
    TileTask task;
    int64_t tile[kMostStreams];
    const uint8_t *scales = packed + layout.tiles * layout.tile_bytes;
    for (int64_t s = 0; s < streams; ++s) {
      tile[s] = smaller(first + s * depth, layout.tiles - 1);
      task.weights[s] = packed + tile[s] * layout.tile_bytes;
      task.scales[s] = scales + tile[s] * kTileRows * (layout.int4 ? 2 * layout.groups : 4);
    }
    alignas(64) float sums[kMostStreams * kMostRows * kTileRows];
    task.groups = layout.groups;
    task.steps = layout.steps;
    task.last_steps = layout.last_steps;
    task.sums = sums;
    for (int64_t block = 0; block < activations.blocks; ++block) {
      const int64_t row = activations.first(block), rows = activations.first(block + 1) - row;
      task.x = activations.x + row * layout.padded_k();
      task.x_scale = activations.x_scale + row * layout.groups;
      task.start = activations.start + row * layout.groups;
      (activations.blocks == 1 ? path.few : path.many)[layout.int4][rows](task);
      for (int64_t s = 0; s < streams && first + s * depth < end; ++s) {
        for (int64_t m = 0; m < rows; ++m) write(sums + (s * rows + m) * kTileRows, row + m, tile[s]);
      }
    }
  }

  void write(const float *sums, int64_t row, int64_t tile) const {
    const int64_t count = smaller(kTileRows, layout.n - tile * kTileRows);
    T *to = y + row * layout.n + tile * kTileRows;
    for (int64_t lane = 0; lane < count; ++lane) put(sums[lane], to + lane);
  }
};

template <typename T>
void linear(owl_pool *pool, const uint8_t *packed, const T *x, T *y, int64_t rows, const Layout &layout,
            uint8_t *workspace, int32_t path) {
  if (rows == 0 || layout.n == 0) return;
  const int64_t threads = pool == nullptr ? 1 : owl_pool_threads(pool);
  const Product<T> product(layout, *paths().path[path], packed, y, rows, workspace, threads);
  product.quantize_rows(pool, x);
  parallel(pool, product.items(), [&](int64_t item) {
    const int64_t first = item * product.streams * product.depth;
    for (int64_t i = 0; i < product.depth; ++i) product.multiply(first + i, layout.tiles);
  });
}

}  // namespace

OWL_API int64_t owl_quantized_bytes(int64_t n, int64_t k, int64_t group) {
  const Layout layout(n, k, group);
  return layout.tiles * layout.tile_bytes + layout.scale_bytes();
}

OWL_API void owl_quantized_pack(owl_pool *pool, const uint8_t *q, const void *scale, int64_t n, int64_t k,
                                int64_t group, uint8_t *packed) {
  const Layout layout(n, k, group);
  ask_for_large_pages(packed, owl_quantized_bytes(n, k, group));
  parallel(pool, layout.tiles, [&](int64_t tile) {
    pack_tile(layout, q, tile, packed + tile * layout.tile_bytes);
    pack_scales(layout, scale, tile, packed + layout.tiles * layout.tile_bytes);
  });
}

OWL_API const char *owl_quantized_paths() { return paths().names; }

OWL_API int64_t owl_quantized_workspace(int64_t rows, int64_t k, int64_t group) {
  const Layout layout(0, k, group);
  return rounded_up(rows * layout.padded_k(), 64) + rows * layout.groups * 8;
}

OWL_API void owl_quantized_linear_f32(owl_pool *pool, const uint8_t *packed, const float *x, float *y,
                                      int64_t rows, int64_t n, int64_t k, int64_t group, uint8_t *workspace,
                                      int32_t path) {
  linear(pool, packed, x, y, rows, Layout(n, k, group), workspace, path);
}

OWL_API void owl_quantized_linear_bf16(owl_pool *pool, const uint8_t *packed, const uint16_t *x, uint16_t *y,
                                       int64_t rows, int64_t n, int64_t k, int64_t group, uint8_t *workspace,
                                       int32_t path) {
  linear(pool, packed, x, y, rows, Layout(n, k, group), workspace, path);
}
