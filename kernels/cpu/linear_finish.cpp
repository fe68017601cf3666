// What follows the sums of a linear layer: bias, adapter, activation, residual, rounding. In fp32, operation by
// operation in one order, so that every variant of these functions gives the same bits.
#include <cstring>

#include "linear.h"
#include "bf16.h"

namespace {

#define OWL_INLINE inline __attribute__((always_inline))

constexpr int64_t kRanks = 32;           // of an adapter, transposed at a time
constexpr int64_t kRounded = 12 * kTile;  // values at once
constexpr int64_t kSwigluColumns = 512;  // of a row, an item of work

// e^x within 2 units in the last place, infinite above 88.4, NaN for NaN: 2^n times a polynomial on the rest.
OWL_INLINE float exponential(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 leaves no bits behind the point
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4b400000u + 127u) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

OWL_INLINE float gated(float x, float slope) { return x / (1.0f + exponential(-(slope * x))); }

// The first of 16 values; all of them, most often, with a size the compiler knows.
template <typename T>
OWL_INLINE void copy(const T *from, int64_t count, T *to) {
  if (count == kTile) {
    std::memcpy(to, from, kTile * sizeof(T));
  } else {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  }
}

// The first of 16 values as fp32, zeros for those that are not there.
template <typename T>
OWL_INLINE void read(const T *from, int64_t count, float *to) {
  T values[kTile] = {};
  copy(from, count, values);
  for (int64_t i = 0; i < kTile; ++i) to[i] = widened(values[i]);
}

// sums[m][i] += sum_r low[m][r] b[i][r], r in order, for rows of one adapter whose rows of B begin at b.
template <typename T>
OWL_INLINE void expand(const Linear &linear, int64_t adapter, const T *b, int64_t row, int64_t rows,
                            int64_t count, float *sums) {
  const int64_t rank = linear.task.rank, end = linear.ranks(adapter);
  float transposed[kRanks][kTile] = {};
  for (int64_t first = 0; first < end; first += kRanks) {
    const int64_t ranks = std::min(kRanks, end - first);
    for (int64_t r = 0; r < ranks; ++r) {
      for (int64_t i = 0; i < count; ++i) transposed[r][i] = widened(b[i * rank + first + r]);
    }
    for (int64_t m = 0; m < rows; ++m) {
      const float *low = linear.low + (row + m) * rank + first;
      float total[kTile];
      std::memcpy(total, sums + m * kTile, sizeof total);
      for (int64_t r = 0; r < ranks; ++r) {
        for (int64_t i = 0; i < kTile; ++i) total[i] += low[r] * transposed[r][i];
      }
      std::memcpy(sums + m * kTile, total, sizeof total);
    }
  }
}

template <typename T>
OWL_INLINE void add_update(const Linear &linear, float *sums, int64_t row, int64_t rows, int64_t column,
                           int64_t count) {
  for (int64_t m = 0, run; m < rows; m += run) {
    const int64_t adapter = linear.adapter(row + m);
    for (run = 1; m + run < rows && linear.adapter(row + m + run) == adapter;) ++run;
    if (adapter < 0) continue;
    const T *b = static_cast<const T *>(linear.task.lora_b) + (adapter * linear.task.n + column) * linear.task.rank;
    expand(linear, adapter, b, row + m, run, count, sums + m * kTile);
  }
}

// Step by step for all rows: long loops over values side by side are what compilers make vectors of.
template <typename T>
OWL_INLINE void finish(const Linear &linear, float *sums, int64_t row, int64_t rows, int64_t column) {
  const owl_linear_task &task = linear.task;
  const int64_t count = std::min(kTile, task.n - column), values = rows * kTile;
  float other[kTile];
  if (task.bias != nullptr) {
    read(static_cast<const T *>(task.bias) + column, count, other);
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t i = 0; i < kTile; ++i) sums[m * kTile + i] += other[i];
    }
  }
  if (linear.has_update) add_update<T>(linear, sums, row, rows, column, count);
  const int64_t first = row * task.n + column;
  if (linear.gate_up != nullptr) {
    for (int64_t m = 0; m < rows; ++m) copy(sums + m * kTile, count, linear.gate_up + first + m * task.n);
    return;
  }
  if (task.activation == OWL_QUICK_GELU) {
    for (int64_t i = 0; i < values; ++i) sums[i] = gated(sums[i], 1.702f);
  }
  if (task.residual != nullptr) {
    for (int64_t m = 0; m < rows; ++m) {
      read(static_cast<const T *>(task.residual) + first + m * task.n, count, other);
      for (int64_t i = 0; i < kTile; ++i) sums[m * kTile + i] += other[i];
    }
  }
  T *y = static_cast<T *>(task.y) + first;
  for (int64_t from = 0; from < values; from += kRounded) {
    T out[kRounded];
    const int64_t end = std::min(kRounded, values - from);
    for (int64_t i = 0; i < end; ++i) put(sums[from + i], out + i);
    for (int64_t i = 0; i < end; i += kTile, y += task.n) copy(out + i, count, y);
  }
}

template <typename T>
OWL_INLINE void swiglu(const owl_linear_task &task, const float *gate_up, int64_t row, int64_t column) {
  const int64_t width = task.n / 2, count = std::min(kSwigluColumns, width - column), first = row * width + column;
  const float *gate = gate_up + row * task.n + column, *up = gate + width;
  float values[kSwigluColumns];
  for (int64_t i = 0; i < count; ++i) values[i] = gated(gate[i], 1.0f) * up[i];
  if (task.residual != nullptr) {
    const T *residual = static_cast<const T *>(task.residual) + first;
    for (int64_t i = 0; i < count; ++i) values[i] += widened(residual[i]);
  }
  T *y = static_cast<T *>(task.y) + first;
  for (int64_t i = 0; i < count; ++i) put(values[i], y + i);
}

}  // namespace

OWL_MULTIVERSION void finish_tile(const Linear &linear, float *sums, int64_t row, int64_t rows, int64_t column) {
  if (linear.task.type == OWL_F32) {
    finish<float>(linear, sums, row, rows, column);
  } else {
    finish<uint16_t>(linear, sums, row, rows, column);
  }
}

OWL_MULTIVERSION void finish_swiglu_part(const Linear &linear, int64_t row, int64_t column) {
  if (linear.task.type == OWL_F32) {
    swiglu<float>(linear.task, linear.gate_up, row, column);
  } else {
    swiglu<uint16_t>(linear.task, linear.gate_up, row, column);
  }
}

void finish_swiglu(owl_pool *pool, const Linear &linear) {
  const int64_t width = linear.task.n / 2, parts = (width + kSwigluColumns - 1) / kSwigluColumns;
  const bool few = linear.task.rows * width <= kFewValues;
  parallel(few ? nullptr : pool, linear.task.rows * parts,
           [&](int64_t item) { finish_swiglu_part(linear, item / parts, item % parts * kSwigluColumns); });
}
