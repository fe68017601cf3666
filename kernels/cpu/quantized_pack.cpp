// Quantized weights in the order in which the kernels read them.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "owl_cpu.h"
#include "pool.h"
#include "quantized_layout.h"

namespace {

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
    const int64_t first = g * layout.group, last = std::min(first + layout.group, layout.k);
    const int64_t steps = g + 1 < layout.groups ? layout.steps : layout.last_steps;
    for (int64_t lane = 0; lane < kTileRows; ++lane) {
      const int64_t row = tile * kTileRows + lane;
      const uint8_t *from = q + std::min(row, layout.n - 1) * row_bytes;
      pack_row(layout, from, first, row < layout.n ? last : 0, steps, out + 4 * lane);
    }
    out += steps * kStepBytes;
  }
}

void pack_scales(const Layout &layout, const void *scale, int64_t tile, uint8_t *out) {
  const int64_t width = layout.int4 ? layout.groups : 1, size = layout.int4 ? 2 : 4;
  uint8_t *to = out + tile * layout.scale_bytes();
  for (int64_t g = 0; g < width; ++g) {
    for (int64_t lane = 0; lane < kTileRows; ++lane, to += layout.scale_size()) {
      const int64_t row = tile * kTileRows + lane;
      uint8_t bytes[4] = {};
      if (row < layout.n) {
        std::memcpy(bytes, static_cast<const uint8_t *>(scale) + (row * width + g) * size, static_cast<size_t>(size));
      }
      if (layout.form == OWL_INT4_NARROW) {
        *to = static_cast<uint8_t>((bytes[1] & 0x80) | (bytes[1] << 1 & 0x7e) | bytes[0] >> 7);
      } else {
        std::memcpy(to, bytes, static_cast<size_t>(size));
      }
    }
  }
}

}  // namespace

OWL_API int64_t owl_quantized_bytes(int32_t form, int64_t n, int64_t k, int64_t group) {
  const Layout layout(form, n, k, group);
  return layout.tiles * (layout.tile_bytes + layout.scale_bytes());
}

OWL_API void owl_quantized_pack(owl_pool *pool, int32_t form, const uint8_t *q, const void *scale, int64_t n,
                                int64_t k, int64_t group, uint8_t *packed) {
  const Layout layout(form, n, k, group);
  ask_for_large_pages(packed, owl_quantized_bytes(form, n, k, group));
  parallel(pool, layout.tiles, [&](int64_t tile) {
    pack_tile(layout, q, tile, packed + tile * layout.tile_bytes);
    pack_scales(layout, scale, tile, packed + layout.tiles * layout.tile_bytes);
  });
}
