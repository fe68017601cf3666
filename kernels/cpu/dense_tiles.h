// The kernels of dense linear layers, written once over `Lanes`, which each instruction set defines before it
// includes this. Everything here is local to the file that includes it.
//
// A sum of one row of x and one of W is the same chain of operations whatever stands beside it: its bits do not
// depend on the number of rows. Paths differ among each other.
#include <cstdint>
#include <cstring>

#include "dense_layout.h"
#include "bf16.h"

namespace {

constexpr int64_t kAhead = 1024;  // bytes of prefetching in each stream

inline void prefetch(const void *at) {
  // Past the end of the weights, too: an address alone, which is never an error.
  __builtin_prefetch(reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(at) + kAhead));
}

template <typename L, typename Weight, int kRows>
inline void dense_step(typename L::Sum (&sums)[kRows][kStreams], const Weight *const (&w)[kStreams],
                       const typename L::Value *x) {
  typename L::Vector weights[kStreams];
#pragma GCC unroll 4
  for (int s = 0; s < kStreams; ++s) weights[s] = L::vector(w[s]);
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    const typename L::Vector values = L::vector(x + m * L::kStep);
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) sums[m][s] = L::add_product(sums[m][s], weights[s], values);
  }
}

template <typename L, typename Weight, int kRows>
void dense_dot(const DenseTask &task) {
  const Weight *w[kStreams];
  for (int s = 0; s < kStreams; ++s) w[s] = static_cast<const Weight *>(task.weights[s]);
  const uint8_t *x = task.x;
  typename L::Sum sums[kRows][kStreams];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) sums[m][s] = L::zero();
  }
  for (int64_t step = 0; step < task.steps; ++step, x += task.x_step) {
    dense_step<L, Weight, kRows>(sums, w, reinterpret_cast<const typename L::Value *>(x));
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      prefetch(w[s]);
      w[s] += L::kStep;
    }
  }
  if (task.rest > 0) {
    alignas(64) Weight ends[kStreams][L::kStep] = {};
    for (int s = 0; s < kStreams; ++s) {
      std::memcpy(ends[s], w[s], static_cast<size_t>(task.rest) * sizeof(Weight));
      w[s] = ends[s];
    }
    dense_step<L, Weight, kRows>(sums, w, reinterpret_cast<const typename L::Value *>(x));
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    float found[kStreams];
    L::totals(sums[m], found);
    for (int s = 0; s < kStreams; ++s) task.sums[m * task.sums_row + s * task.sums_stream] = found[s];
  }
}

inline void pack_value(uint16_t value, uint16_t *to) { *to = value; }
template <typename T>
inline void pack_value(T value, float *to) {
  *to = widened(value);
}

template <typename L, typename Weight>
void dense_pack(const void *from, int64_t k, uint8_t *out, int64_t out_step) {
  const Weight *row = static_cast<const Weight *>(from);
  int64_t left = k;
  for (; left >= L::kStep; left -= L::kStep, row += L::kStep, out += out_step) {
    typename L::Value *to = reinterpret_cast<typename L::Value *>(out);
    for (int64_t i = 0; i < L::kStep; ++i) pack_value(row[i], to + i);
  }
  if (left > 0) {
    typename L::Value values[L::kStep] = {};
    for (int64_t i = 0; i < left; ++i) pack_value(row[i], values + i);
    std::memcpy(out, values, sizeof values);
  }
}

template <typename L, typename Weight, int kRows>
void add_dots(DenseKernels &kernels) {
  if constexpr (kRows > 0) {
    kernels.dot[kRows] = dense_dot<L, Weight, kRows>;
    add_dots<L, Weight, kRows - 1>(kernels);
  }
}

template <typename L, typename Weight>
DenseKernels make_dense() {
  DenseKernels kernels = {};
  kernels.most_rows = L::kMostRows;
  kernels.step = L::kStep;
  kernels.value_bytes = sizeof(typename L::Value);
  kernels.pack = dense_pack<L, Weight>;
  add_dots<L, Weight, L::kMostRows>(kernels);
  return kernels;
}

}  // namespace
