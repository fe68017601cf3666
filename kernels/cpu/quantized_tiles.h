// The kernels of quantized_linear, written once over `Lanes`, 16 values wide, which each instruction set
// defines before it includes this. Everything here is local to the file that includes it: the same function
// compiled for two instruction sets must never be merged into one.
//
// Sums within a group are whole numbers, hence exact; groups are added in order, with multiplications and
// additions kept apart. So every path gives the same bits, for any number of rows at once.
#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "quantized_layout.h"

namespace {

// Bytes of prefetching in each stream of weights. One row, N11008 K4096, 4 streams on a Zen 4 core: 256 takes
// 0.86 of the time of 1024, 512 takes 0.92, none 0.87 (with 2 streams).
constexpr int64_t kAhead = 256;
constexpr int64_t kPart = 256;    // inputs quantized before they are put in their places

inline void prefetch(const uint8_t *at) {
  // Past the end of the weights, too: an address alone, which is never an error.
  __builtin_prefetch(reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(at) + kAhead));
}

// Scales of a byte each as fp16.
inline typename Lanes::Float narrow(const uint8_t *at) {
  uint16_t halves[kTileRows];
  for (int64_t i = 0; i < kTileRows; ++i) {
    halves[i] = static_cast<uint16_t>((at[i] << 8 & 0x8000) | (at[i] << 7 & 0x3f80));
  }
  return Lanes::halves(halves);
}

template <int kForm>
inline typename Lanes::Float scales_at(const void *scales, int64_t group) {
  if constexpr (kForm == OWL_INT8) return Lanes::floats(static_cast<const float *>(scales));
  if constexpr (kForm == OWL_INT4) return Lanes::halves(static_cast<const uint16_t *>(scales) + group * kTileRows);
  return narrow(static_cast<const uint8_t *>(scales) + group * kTileRows);
}

// Totals stand in registers beside the sums, or in memory where both do not fit: with 7 rows and more, where two
// streams need the registers for their sums. int4 on two Xeon cores (L2 of 2 MiB each) takes 0.78 of the time of
// one stream with 8 rows and 0.9 with 128, int8 0.74 and 0.79.
template <int kForm, int kRows, int kStreams>
void tile_kernel(const TileTask &task) {
  constexpr bool kInt4 = kForm != OWL_INT8, kKept = kRows * kStreams <= Lanes::kSums;
  const uint8_t *w[kStreams];
  for (int s = 0; s < kStreams; ++s) w[s] = task.weights[s];
  typename Lanes::Float total[kStreams][kRows];
  const auto in_memory = [&](int s, int m) { return task.sums + (s * kRows + m) * kTileRows; };
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int s = 0; s < kStreams; ++s) {
      if constexpr (kKept) {
        total[s][m] = Lanes::zero();
      } else {
        Lanes::store(in_memory(s, m), Lanes::zero());
      }
    }
  }
  const int8_t *x = task.x;
  for (int64_t g = 0; g < task.groups; ++g) {
    typename Lanes::Int dots[kStreams][kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const typename Lanes::Int start = Lanes::spread(task.start[g * kRows + m]);
#pragma GCC unroll 16
      for (int s = 0; s < kStreams; ++s) dots[s][m] = start;
    }
    const int64_t steps = g + 1 < task.groups ? task.steps : task.last_steps;
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 2
      for (int half = 0; half < (kInt4 ? 2 : 1); ++half) {
        typename Lanes::Bytes bytes[kStreams];
#pragma GCC unroll 16
        for (int s = 0; s < kStreams; ++s) {
          bytes[s] = !kInt4 ? Lanes::whole(w[s]) : half == 0 ? Lanes::low(w[s]) : Lanes::high(w[s]);
        }
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const typename Lanes::Four four = Lanes::four(x + 4 * m);
#pragma GCC unroll 16
          for (int s = 0; s < kStreams; ++s) {
            dots[s][m] = kInt4 ? Lanes::dot_int4(dots[s][m], bytes[s], four)
                               : Lanes::dot_int8(dots[s][m], bytes[s], four);
          }
        }
        x += 4 * kRows;
      }
#pragma GCC unroll 16
      for (int s = 0; s < kStreams; ++s) {
        prefetch(w[s]);
        w[s] += kStepBytes;
      }
    }
#pragma GCC unroll 16
    for (int s = 0; s < kStreams; ++s) {
      const typename Lanes::Float scale = scales_at<kForm>(task.scales[s], g);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const typename Lanes::Float factor =
            Lanes::times(Lanes::spread(task.x_scale[g * kRows + m]), scale);
        const typename Lanes::Float more = Lanes::times(Lanes::to_float(dots[s][m]), factor);
        if constexpr (kKept) {
          total[s][m] = Lanes::plus(total[s][m], more);
        } else {
          Lanes::store(in_memory(s, m), Lanes::plus(Lanes::floats(in_memory(s, m)), more));
        }
      }
    }
  }
  if constexpr (kKept) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
      for (int s = 0; s < kStreams; ++s) Lanes::store(in_memory(s, m), total[s][m]);
    }
  }
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

constexpr uint32_t kInfinite = 0x7f800000u, kTiny = 0x0d800000u;  // bits of infinity and of 2^-100

// Found among the bit patterns, which order as the magnitudes do, and anything not finite above all.
template <typename T>
inline uint32_t largest_magnitude(const T *row, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = bits_of(widened(row[i])) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// Adding 1.5 * 2^23 leaves no bits behind the point: rounded to nearest, ties to even, on any machine.
template <typename T>
inline int32_t quantize(const T *row, int64_t count, float inverse, int8_t *out) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t q = static_cast<int32_t>(bits_of(widened(row[i]) * inverse + 12582912.0f) - 0x4b400000u);
    out[i] = static_cast<int8_t>(q);
    sum += q;
  }
  return sum;
}

template <typename T>
void quantize_row(const T *row, const RowTask &task) {
  const Layout &layout = *task.layout;
  const int32_t offset = layout.int4 ? 8 : Lanes::kInt8Offset;
  const int64_t line = 4 * task.rows;
  int8_t *out = task.x + 4 * task.row;
  for (int64_t g = 0; g < layout.groups; ++g) {
    const bool last = g + 1 == layout.groups;
    const int64_t count = last ? layout.k - g * layout.group : layout.group;
    const int64_t padded = (last ? layout.last_steps : layout.steps) * layout.step;
    const uint32_t largest = largest_magnitude(row, count);
    const bool finite = largest < kInfinite, used = finite && largest >= kTiny;
    float amax;
    std::memcpy(&amax, &largest, sizeof amax);
    int32_t sum = 0;
    for (int64_t from = 0; from < padded; from += kPart) {
      alignas(64) int8_t part[kPart];
      const int64_t left = count - from < kPart ? count - from : kPart;
      const int64_t size = padded - from < kPart ? padded - from : kPart;
      if (!used || left < size) std::memset(part, 0, sizeof part);
      if (used && left > 0) sum += quantize(row + from, left, 127.0f / amax, part);
      for (int64_t i = 0; i < size; i += 4, out += line) std::memcpy(out, part + i, 4);
    }
    task.x_scale[g * task.rows + task.row] = used ? amax / 127.0f : finite ? 0.0f : __builtin_nanf("");
    task.start[g * task.rows + task.row] = -offset * sum;
    row += count;
  }
}

template <int kRows>
constexpr int streams_of() {
  constexpr int fit = Lanes::kSums / kRows;
  return fit < Lanes::kLeastStreams ? Lanes::kLeastStreams : fit >= kMostStreams ? kMostStreams : fit == 3 ? 2 : fit;
}

template <int kRows>
void add_kernels(QuantizedKernels &kernels) {
  if constexpr (kRows > 0) {
    constexpr int streams = streams_of<kRows>();
    kernels.streams[kRows] = streams;
    kernels.few[OWL_INT8][kRows] = tile_kernel<OWL_INT8, kRows, streams>;
    kernels.few[OWL_INT4][kRows] = tile_kernel<OWL_INT4, kRows, streams>;
    kernels.few[OWL_INT4_NARROW][kRows] = tile_kernel<OWL_INT4_NARROW, kRows, streams>;
    kernels.many[OWL_INT8][kRows] = tile_kernel<OWL_INT8, kRows, Lanes::kLeastStreams>;
    kernels.many[OWL_INT4][kRows] = tile_kernel<OWL_INT4, kRows, Lanes::kLeastStreams>;
    kernels.many[OWL_INT4_NARROW][kRows] = tile_kernel<OWL_INT4_NARROW, kRows, Lanes::kLeastStreams>;
    add_kernels<kRows - 1>(kernels);
  }
}

QuantizedKernels make_quantized() {
  QuantizedKernels kernels = {};
  kernels.most_rows = Lanes::kMostRows;
  kernels.least_streams = Lanes::kLeastStreams;
  add_kernels<Lanes::kMostRows>(kernels);
  kernels.quantize_f32 = quantize_row<float>;
  kernels.quantize_bf16 = quantize_row<uint16_t>;
  return kernels;
}

}  // namespace
