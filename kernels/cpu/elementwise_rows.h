// Layer norm and activations of one row, over `Floats`: fp32 inside, rounded once at the end.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "floats_math.h"

namespace {

template <typename Number>
inline Float load_some(const Number *at, int64_t count) {
  if (count >= Floats::kWidth) return Floats::load(at);
  Number part[Floats::kWidth] = {};
  std::memcpy(part, at, static_cast<size_t>(count) * sizeof(Number));
  return Floats::load(part);
}

template <typename Number>
inline void store_some(Number *at, Float value, int64_t count) {
  if (count >= Floats::kWidth) {
    Floats::store(at, value);
    return;
  }
  Number part[Floats::kWidth];
  Floats::store(part, value);
  std::memcpy(at, part, static_cast<size_t>(count) * sizeof(Number));
}

// Sum over a row of function(value), four registers of sums side by side; in one order for any number of rows.
template <typename Number, typename Function>
inline float sum_over(const Number *x, int64_t width, const Function &function) {
  constexpr int64_t kSums = 4, kLane = Floats::kWidth;
  Float sum[kSums];
  for (Float &one : sum) one = Floats::spread(0.0f);
  int64_t i = 0;
  for (; i + kSums * kLane <= width; i += kSums * kLane) {
#pragma GCC unroll 4
    for (int64_t s = 0; s < kSums; ++s) sum[s] = Floats::add(sum[s], function(Floats::load(x + i + s * kLane)));
  }
  for (int64_t s = 0; i < width; i += kLane, ++s) {
    const Float value = function(load_some(x + i, width - i));
    sum[s] = Floats::add(sum[s], Floats::first(width - i < kLane ? width - i : kLane, value, Floats::spread(0.0f)));
  }
  return total_of(Floats::add(Floats::add(sum[0], sum[1]), Floats::add(sum[2], sum[3])));
}

template <typename Number>
void layer_norm(const void *row, const void *scale, const void *shift, int64_t width, float eps, void *out) {
  const Number *x = static_cast<const Number *>(row);
  const Number *weight = static_cast<const Number *>(scale), *bias = static_cast<const Number *>(shift);
  const float count = static_cast<float>(width);
  const Float mean = Floats::spread(sum_over(x, width, [](Float value) { return value; }) / count);
  const float square = sum_over(x, width, [&](Float value) {
    const Float centred = Floats::subtract(value, mean);
    return Floats::times(centred, centred);
  });
  const Float inverse = Floats::spread(1.0f / std::sqrt(square / count + eps));
  for (int64_t i = 0; i < width; i += Floats::kWidth) {
    const int64_t left = width - i;
    Float y = Floats::times(Floats::subtract(load_some(x + i, left), mean), inverse);
    if (weight != nullptr) y = Floats::times(y, load_some(weight + i, left));
    if (bias != nullptr) y = Floats::add(y, load_some(bias + i, left));
    store_some(static_cast<Number *>(out) + i, y, left);
  }
}

// x sigmoid(factor x)
inline Float gated(Float x, float factor) {
  const Float one = Floats::spread(1.0f);
  return Floats::divide(x, Floats::add(one, exp_of(Floats::times(x, Floats::spread(-factor)))));
}

template <typename Number>
void swiglu(const void *gate, const void *up, int64_t width, void *out) {
  for (int64_t i = 0; i < width; i += Floats::kWidth) {
    const Float g = gated(load_some(static_cast<const Number *>(gate) + i, width - i), 1.0f);
    const Float u = load_some(static_cast<const Number *>(up) + i, width - i);
    store_some(static_cast<Number *>(out) + i, Floats::times(g, u), width - i);
  }
}

template <typename Number>
void quick_gelu(const void *x, const void *bias, int64_t width, void *out) {
  for (int64_t i = 0; i < width; i += Floats::kWidth) {
    Float z = load_some(static_cast<const Number *>(x) + i, width - i);
    if (bias != nullptr) z = Floats::add(z, load_some(static_cast<const Number *>(bias) + i, width - i));
    store_some(static_cast<Number *>(out) + i, gated(z, 1.702f), width - i);
  }
}

}  // namespace
