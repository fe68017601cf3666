// Attention of some rows over keys in blocks (arXiv 2205.14135), written once over `Floats`. Everything here is
// local to the file that includes it: the same function compiled for two instruction sets must never be merged.
//
// The order of every sum is fixed. A score is summed over every kLanes-th channel (or pair of channels) in order,
// then the upper half of these sums is added to the lower half until one is left; a row keeps its largest score
// and its sum of weights over blocks of kKeys keys from the first; values are added in order of their keys, a lane
// per channel, and no key that a row does not see is ever multiplied, not even by zero. How many rows are computed
// at once, and which, changes no bit.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "bf16.h"
#include "floats_math.h"
#include "vectors.h"

namespace {

// What products are made of, in fp32: one value at a time. The other kind are the Pairs of AVX512-BF16.
struct Single {
  using Element = float;
  static constexpr int kPack = 1;
  using Vector = Float;

  static Float add_product(Float sum, Vector a, Vector b) { return Floats::add_product(sum, a, b); }
  static Vector spread(const Element *at) { return Floats::spread(*at); }
  static Vector fetch(const Element *at) { return Floats::load(at); }
  template <typename Stored>
  static Vector load(const Stored *at) {
    return Floats::load(at);
  }
  static void put(Element *at, Vector value) { Floats::store(at, value); }
  static void transpose(Vector v[]) { Floats::transpose(v); }
};

constexpr int64_t kLanes = Floats::kWidth;
// Rows further on are prefetched into the L2 cache. Into L1, prefetches and what is read meanwhile compete for the
// same few fill buffers: 1.5 x the time (one Zen 4 core, 512 keys, 32 heads of 128, bf16).
constexpr int kInto = 2;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

constexpr int64_t padded(int64_t width, int64_t to) { return (width + to - 1) / to * to; }

// sums[m][lane] = start + sum over i of a[m][i] * b[i][lane], for kRows rows and kVectors registers of lanes.
// start: 0, or what is there times factor[m].
template <typename Math, int kRows, int kVectors>
inline void multiply(const typename Math::Element *a, int64_t a_row, const typename Math::Element *b,
                     int64_t b_row, int64_t steps, float *sums, int64_t sums_row, const float *factor) {
  Float sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) {
      sum[m][n] = factor == nullptr
                      ? Floats::spread(0.0f)
                      : Floats::times(Floats::load(sums + m * sums_row + n * kLanes), Floats::spread(factor[m]));
    }
  }
  for (int64_t i = 0; i < steps; ++i) {
    typename Math::Vector column[kVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) column[n] = Math::fetch(b + i * b_row + n * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const typename Math::Vector value = Math::spread(a + m * a_row + i);
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) sum[m][n] = Math::add_product(sum[m][n], value, column[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) Floats::store(sums + m * sums_row + n * kLanes, sum[m][n]);
  }
}

// The same for any number of lanes, a multiple of kLanes.
template <typename Math, int kRows>
inline void multiply_lanes(const typename Math::Element *a, int64_t a_row, const typename Math::Element *b,
                           int64_t b_row, int64_t steps, float *sums, int64_t sums_row, const float *factor,
                           int64_t lanes) {
  constexpr int kMany = Floats::kVectors;
  int64_t lane = 0;
  for (; lane + kMany * kLanes <= lanes; lane += kMany * kLanes) {
    multiply<Math, kRows, kMany>(a, a_row, b + lane, b_row, steps, sums + lane, sums_row, factor);
  }
  for (; lane < lanes; lane += kLanes) {
    multiply<Math, kRows, 1>(a, a_row, b + lane, b_row, steps, sums + lane, sums_row, factor);
  }
}

// sum[m] = the products of a[m] with one register of keys, added up as the head of this file says: kLeft sums, of
// which this is the one at kFirst. Its lanes are keys.
template <typename Math, int kRows, int kLeft, int kFirst>
inline __attribute__((always_inline)) void fold(const typename Math::Element *a, int64_t a_row,
                                                const typename Math::Element *b, int64_t columns, Float sum[]) {
  if constexpr (kLeft < kLanes) {
    Float other[kRows];
    fold<Math, kRows, 2 * kLeft, kFirst>(a, a_row, b, columns, sum);
    fold<Math, kRows, 2 * kLeft, kFirst + kLeft>(a, a_row, b, columns, other);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) sum[m] = Floats::add(sum[m], other[m]);
  } else {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) sum[m] = Floats::spread(0.0f);
    for (int64_t i = kFirst; i < columns; i += kLanes) {
      const typename Math::Vector keys = Math::fetch(b + i * kKeys);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) sum[m] = Math::add_product(sum[m], Math::spread(a + m * a_row + i), keys);
    }
  }
}

// Scores of `rows` rows, at most kRows of them, with transposed keys; columns: of these, a multiple of kLanes.
template <typename Math, int kRows = Floats::kScored>
inline void score_rows(int64_t rows, const typename Math::Element *query, const typename Math::Element *keys,
                       int64_t columns, int64_t count, float *scores) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      score_rows<Math, kRows - 1>(rows, query, keys, columns, count, scores);
      return;
    }
  }
  for (int64_t first = 0; first < count; first += kLanes) {
    Float sum[kRows];
    fold<Math, kRows, 1, 0>(query, columns, keys + first, columns, sum);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) Floats::store(scores + m * kKeys + first, sum[m]);
  }
}

template <typename Math, int kRows = Floats::kRows>
inline void multiply_rows(int64_t rows, const typename Math::Element *a, int64_t a_row,
                          const typename Math::Element *b, int64_t b_row, int64_t steps, float *sums,
                          int64_t sums_row, const float *factor, int64_t lanes) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      multiply_rows<Math, kRows - 1>(rows, a, a_row, b, b_row, steps, sums, sums_row, factor, lanes);
      return;
    }
  }
  multiply_lanes<Math, kRows>(a, a_row, b, b_row, steps, sums, sums_row, factor, lanes);
}

// The values from `column` on of a row that ends at `width`, and zeros behind them. kWhole: none are missing.
template <typename Math, bool kWhole, typename Stored>
inline typename Math::Vector load_part(const Stored *row, int64_t column, int64_t width) {
  constexpr int64_t kSize = kLanes * Math::kPack;
  if (kWhole || column + kSize <= width) return Math::load(row + column);
  Stored part[kSize] = {};
  std::memcpy(part, row + column, static_cast<size_t>(width - column) * sizeof(Stored));
  return Math::load(part);
}

template <typename Stored>
inline const Stored *row_at(const KeyBlock &block, int64_t place) {
  return static_cast<const Stored *>(block.place[place]);
}

// While `count` rows from `first` on are read piece by piece (columns), whole rows further on are prefetched: a
// row's lines lie side by side in memory and are cheapest together.
template <typename Stored>
inline void prefetch_rows(const KeyBlock &block, int64_t first, int64_t count, int64_t piece, int64_t pieces,
                     int64_t width) {
  const int64_t from = count * piece / pieces, to = count * (piece + 1) / pieces;
  for (int64_t j = from; j < to; ++j) {
    const Stored *row = row_at<Stored>(block, first + j + kAhead);
    for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(Stored))) __builtin_prefetch(row + i, 0, kInto);
  }
}

// Keys of a block as columns: out[channel / kPack][key].
template <typename Math, typename Stored, bool kWhole>
void transpose_keys(const KeyBlock &block, int64_t width, typename Math::Element *out) {
  constexpr int64_t kSize = kLanes * Math::kPack;
  const int64_t pieces = (width + kSize - 1) / kSize;
  for (int64_t first = 0; first < block.count; first += kLanes) {
    for (int64_t column = 0; column < width; column += kSize) {
      typename Math::Vector rows[kLanes];
      prefetch_rows<Stored>(block, first, kLanes, column / kSize, pieces, width);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) {
        rows[j] = load_part<Math, kWhole>(row_at<Stored>(block, first + j), column, width);
      }
      Math::transpose(rows);
      typename Math::Element *to = out + column / Math::kPack * kKeys + first;
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) Math::put(to + i * kKeys, rows[i]);
    }
  }
}

// Values of a block: out[key][channel], or two keys' channels paired: out[key / 2][channel].
template <typename Math, typename Stored, bool kWhole>
void put_values(const KeyBlock &block, int64_t width, typename Math::Element *out) {
  const int64_t row = padded(width, kLanes * Math::kPack);
  for (int64_t key = 0; key < block.count; key += Math::kPack) {
    typename Math::Element *to = out + key / Math::kPack * row;
    const Stored *from = row_at<Stored>(block, kKeys + key);
    for (int64_t column = 0; column < width; column += kLanes * Math::kPack) {
      const typename Math::Vector values = load_part<Math, kWhole>(from, column, width);
      __builtin_prefetch(row_at<Stored>(block, kKeys + key + kAhead) + column, 0, kInto);
      if constexpr (Math::kPack == 1) {
        Math::put(to + column, values);
      } else {
        typename Math::Vector others = Math::zero(), low, high;
        if (key + 1 < block.count) {
          others = load_part<Math, kWhole>(row_at<Stored>(block, kKeys + key + 1), column, width);
          __builtin_prefetch(row_at<Stored>(block, kKeys + key + 1 + kAhead) + column, 0, kInto);
        }
        Math::mix(values, others, &low, &high);
        Math::put(to + column, low);
        Math::put(to + column + kLanes, high);
      }
    }
  }
}

// What is kept of all rows of a task.
template <typename Math>
struct Running {
  static constexpr int64_t kMostRows = kTaskValues / kLanes;
  using Element = typename Math::Element;
  alignas(64) Element query[kTaskValues / Math::kPack];
  alignas(64) float mixed[kTaskValues];
  float peak[kMostRows];                 // largest score so far
  alignas(64) float total[kTaskValues];  // weights, a lane each for every kLanes-th key
};

// Scores of a row -> weights, and by how much the row's earlier sums shrink. Sees `count` keys of the block.
template <typename Math>
inline float weigh(const float *scores, const KeyBlock &block, bool scaled, int64_t count, float *peak, float *total,
                   typename Math::Element *weights) {
  constexpr int64_t kMost = kKeys / kLanes;
  Float weight[kMost];
  const int64_t used = (count + kLanes - 1) / kLanes;
  Float most = Floats::spread(*peak);
  for (int64_t n = 0; n < used; ++n) {
    weight[n] = Floats::times(Floats::load(scores + n * kLanes), Floats::load(block.key_factor + n * kLanes));
    const int64_t left = count - n * kLanes;
    if (left < kLanes) weight[n] = Floats::first(left, weight[n], Floats::spread(kLowest));
    most = Floats::larger(most, weight[n]);
  }
  const float before = *peak, now = Floats::largest(most);
  const Float top = Floats::spread(now);
  Float sum = Floats::spread(0.0f);
  for (int64_t n = 0; n < used; ++n) {
    weight[n] = exp2_of(Floats::subtract(weight[n], top));
    sum = n == 0 ? weight[n] : Floats::add(sum, weight[n]);
    if (scaled) {
      weight[n] = Floats::times(weight[n], Floats::load(block.value_factor + n * kLanes));
      const int64_t left = count - n * kLanes;
      if (left < kLanes) weight[n] = Floats::first(left, weight[n], Floats::spread(0.0f));
    }
  }
  if constexpr (Math::kPack == 1) {
    for (int64_t n = 0; n < used; ++n) Math::put(weights + n * kLanes, weight[n]);
  } else {
    if (used % 2 != 0) weight[used] = Floats::spread(0.0f);
    for (int64_t n = 0; n < used; n += 2) Math::put_weights(weights + n * kLanes / 2, weight[n], weight[n + 1]);
  }
  float shrink = 1.0f;
  if (!(before == now)) {
    alignas(64) float lanes[kLanes];
    Floats::store(lanes, exp2_of(Floats::subtract(Floats::spread(before), top)));
    shrink = lanes[0];
  }
  Floats::store(total, Floats::fma(Floats::load(total), Floats::spread(shrink), sum));
  *peak = now;
  return shrink;
}

// Scores of one row, without a copy of the keys: a lane per channel, so that each key is read in order.
template <typename Math, typename Stored, bool kWhole>
inline void score_one(const typename Math::Element *query, const KeyBlock &block, int64_t width, float *scores) {
  constexpr int64_t kSize = kLanes * Math::kPack;
  for (int64_t first = 0; first < block.count; first += kLanes) {
    Float sum[kLanes];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kLanes; ++j) {
      const Stored *row = row_at<Stored>(block, first + j), *ahead = row_at<Stored>(block, first + j + kAhead);
      sum[j] = Floats::spread(0.0f);
      for (int64_t column = 0; column < width; column += kSize) {
        __builtin_prefetch(ahead + column, 0, kInto);
        const typename Math::Vector key = load_part<Math, kWhole>(row, column, width);
        sum[j] = Math::add_product(sum[j], Math::fetch(query + column / Math::kPack), key);
      }
    }
    Floats::transpose(sum);
#pragma GCC unroll 16
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < half; ++i) sum[i] = Floats::add(sum[i], sum[i + half]);
    }
    Floats::store(scores + first, sum[0]);
  }
}

// Values of a block into some sums of one row, without a copy: keys in order, as in multiply.
template <typename Math, typename Stored, bool kWhole, int kVectors>
inline void mix_one(const typename Math::Element *weights, float shrink, const KeyBlock &block, int64_t column,
                    int64_t width, float *mixed) {
  Float sum[kVectors];
#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) {
    sum[n] = Floats::times(Floats::load(mixed + n * kLanes), Floats::spread(shrink));
  }
  for (int64_t key = 0; key < block.count; key += Math::kPack) {
    const typename Math::Vector weight = Math::spread(weights + key / Math::kPack);
    const int64_t place = kKeys + key;
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; n += Math::kPack) {
      const int64_t here = column + n * kLanes;
      const typename Math::Vector a = load_part<Math, kWhole>(row_at<Stored>(block, place), here, width);
      __builtin_prefetch(row_at<Stored>(block, place + kAhead) + here, 0, kInto);
      if constexpr (Math::kPack == 1) {
        sum[n] = Math::add_product(sum[n], weight, a);
      } else {
        typename Math::Vector b = Math::zero(), low, high;
        if (key + 1 < block.count) {
          b = load_part<Math, kWhole>(row_at<Stored>(block, place + 1), here, width);
          __builtin_prefetch(row_at<Stored>(block, place + 1 + kAhead) + here, 0, kInto);
        }
        Math::mix(a, b, &low, &high);
        sum[n] = Math::add_product(sum[n], weight, low);
        sum[n + 1] = Math::add_product(sum[n + 1], weight, high);
      }
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) Floats::store(mixed + n * kLanes, sum[n]);
}

// A task of one row over one block: the bits of attend_tile, without a copy of keys and values.
template <typename Math, typename Stored, bool kWhole>
inline void attend_one(const AttentionTask &task, const KeyBlock &block, Running<Math> &running) {
  alignas(64) float scores[kKeys];
  alignas(64) typename Math::Element weights[kKeys / Math::kPack];
  score_one<Math, Stored, kWhole>(running.query, block, task.width, scores);
  const float shrink =
      weigh<Math>(scores, block, task.scaled_values, block.count, running.peak, running.total, weights);
  constexpr int kMany = 2 * Floats::kVectors, kFew = Math::kPack;
  int64_t column = 0;
  for (; column + kMany * kLanes <= task.width; column += kMany * kLanes) {
    mix_one<Math, Stored, kWhole, kMany>(weights, shrink, block, column, task.width, running.mixed + column);
  }
  for (; column < task.width; column += kFew * kLanes) {
    mix_one<Math, Stored, kWhole, kFew>(weights, shrink, block, column, task.width, running.mixed + column);
  }
}

// Rows [row, end) of a task, at most Floats::kRows, over one block.
template <typename Math>
inline void attend_tile(const AttentionTask &task, const KeyBlock &block, int64_t first, int64_t row, int64_t end,
                        const typename Math::Element *keys, const typename Math::Element *values,
                        Running<Math> &running) {
  using Element = typename Math::Element;
  constexpr int64_t kPack = Math::kPack;
  const int64_t width = padded(task.width, kLanes * kPack), depth = width / kPack;
  while (row < end && task.seen(row) <= first) ++row;
  if (row == end) return;
  const int64_t rows = end - row;
  int64_t counts[Floats::kRows] = {};
  for (int64_t m = 0; m < rows; ++m) {
    const int64_t seen = task.seen(row + m) - first;
    counts[m] = seen < block.count ? seen : block.count;
  }
  alignas(64) float scores[Floats::kRows * kKeys], shrink[Floats::kRows];
  alignas(64) Element weights[Floats::kRows * kKeys / kPack];
  for (int64_t m = 0; m < rows; m += Floats::kScored) {
    score_rows<Math>(rows - m < Floats::kScored ? rows - m : Floats::kScored, running.query + (row + m) * depth, keys,
                     depth, counts[rows - 1], scores + m * kKeys);
  }
  for (int64_t m = 0; m < rows; ++m) {
    shrink[m] = weigh<Math>(scores + m * kKeys, block, task.scaled_values, counts[m], running.peak + row + m,
                            running.total + (row + m) * kLanes, weights + m * kKeys / kPack);
  }
  const int64_t common = counts[0] / kPack;  // steps that all rows take
  float *mixed = running.mixed + row * width;
  multiply_rows<Math>(rows, weights, kKeys / kPack, values, width, common, mixed, width, shrink, width);
  static const float one = 1.0f;
  for (int64_t m = 0; m < rows; ++m) {
    const Element *mine = weights + m * kKeys / kPack;
    const int64_t whole = counts[m] / kPack;
    if (whole > common) {
      multiply_rows<Math>(1, mine + common, 0, values + common * width, width, whole - common, mixed + m * width,
                          width, &one, width);
    }
    if constexpr (kPack == 2) {
      if (counts[m] % 2 != 0) {  // without the key behind it
        alignas(64) Element last[kWidestHead];
        for (int64_t i = 0; i < width; ++i) last[i] = values[whole * width + i] & 0xffffu;
        multiply_rows<Math>(1, mine + whole, 0, last, width, 1, mixed + m * width, width, &one, width);
      }
    }
  }
}

template <typename Math, typename Number>
inline void load_queries(const AttentionTask &task, Running<Math> &running) {
  using Element = typename Math::Element;
  const int64_t width = padded(task.width, kLanes * Math::kPack);
  for (int64_t r = 0; r < task.rows; ++r) {
    Element *to = running.query + r * (width / Math::kPack);
    for (int64_t column = 0; column < width; column += kLanes * Math::kPack) {
      const Number *from = static_cast<const Number *>(task.query[r]);
      Math::put(to + column / Math::kPack, load_part<Math, false>(from, column, task.width));
    }
    running.peak[r] = kLowest;
  }
  std::memset(running.mixed, 0, static_cast<size_t>(task.rows * width) * sizeof(float));
  std::memset(running.total, 0, static_cast<size_t>(task.rows * kLanes) * sizeof(float));
}

// A row that sees no key is zeros.
template <typename Math, typename Number>
inline void write_rows(const AttentionTask &task, const Running<Math> &running) {
  const int64_t width = padded(task.width, kLanes * Math::kPack);
  for (int64_t r = 0; r < task.rows; ++r) {
    Number *to = static_cast<Number *>(task.out[r]);
    const Float total = Floats::spread(total_of(Floats::load(running.total + r * kLanes)));
    for (int64_t column = 0; column < task.width; column += kLanes) {
      Float y = Floats::spread(0.0f);
      if (task.seen(r) > 0) y = Floats::divide(Floats::load(running.mixed + r * width + column), total);
      if (column + kLanes <= task.width) {
        Floats::store(to + column, y);
      } else {
        alignas(64) Number part[kLanes];
        Floats::store(part, y);
        std::memcpy(to + column, part, static_cast<size_t>(task.width - column) * sizeof(Number));
      }
    }
  }
}

template <typename Math, typename Number, typename Stored, bool kWhole>
void attend_blocks(const AttentionTask &task) {
  using Element = typename Math::Element;
  alignas(64) Element keys[kWidestHead * kKeys / Math::kPack], values[kWidestHead * kKeys / Math::kPack];
  Running<Math> running;
  load_queries<Math, Number>(task, running);
  KeyBlock blocks[2];
  const int64_t end = task.seen(task.rows - 1);
  const auto locate = [&](int64_t first, KeyBlock *block) {
    task.locate(task.keys, first, end - first < kKeys ? end - first : kKeys, block);
  };
  const void *after[kAhead] = {};  // where the task behind this one begins
  if (end > 0) {
    locate(0, &blocks[0]);
    for (int64_t i = 0; i < kAhead; ++i) after[i] = static_cast<const char *>(blocks[0].place[i]) + task.next;
  }
  for (int64_t first = 0, current = 0; first < end; first += kKeys, current ^= 1) {
    KeyBlock &block = blocks[current];
    const bool more = first + kKeys < end;
    if (more) locate(first + kKeys, &blocks[current ^ 1]);
    std::memcpy(block.place + 2 * kKeys, more ? blocks[current ^ 1].place : after, kAhead * sizeof(void *));
    if (task.rows == 1) {
      attend_one<Math, Stored, kWhole>(task, block, running);
      continue;
    }
    transpose_keys<Math, Stored, kWhole>(block, task.width, keys);
    put_values<Math, Stored, kWhole>(block, task.width, values);
    for (int64_t row = 0; row < task.rows; row += Floats::kRows) {
      const int64_t last = row + Floats::kRows < task.rows ? row + Floats::kRows : task.rows;
      attend_tile<Math>(task, block, first, row, last, keys, values, running);
    }
  }
  write_rows<Math, Number>(task, running);
}

template <typename Math, typename Number, typename Stored>
void attend(const AttentionTask &task) {
  const bool whole = task.width % (kLanes * Math::kPack) == 0;
  (whole ? attend_blocks<Math, Number, Stored, true> : attend_blocks<Math, Number, Stored, false>)(task);
}

}  // namespace
