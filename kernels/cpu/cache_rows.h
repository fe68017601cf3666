// Rows on their way into the cache, over `Floats`; the same bits on every path.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bf16.h"
#include "floats_math.h"

namespace {

template <typename Number>
void rotate(const void *x, const void *cos, const void *sin, int64_t width, void *y) {
  const int64_t half = width / 2;
  const Number *low = static_cast<const Number *>(x), *high = low + half;
  const Number *c = static_cast<const Number *>(cos), *s = static_cast<const Number *>(sin);
  Number *low_out = static_cast<Number *>(y), *high_out = low_out + half;
  int64_t i = 0;
  for (; i + Floats::kWidth <= half; i += Floats::kWidth) {
    const Float a = Floats::load(low + i), b = Floats::load(high + i);
    const Float cosine = Floats::load(c + i), sine = Floats::load(s + i);
    Floats::store(low_out + i, Floats::subtract(Floats::times(a, cosine), Floats::times(b, sine)));
    Floats::store(high_out + i, Floats::add(Floats::times(b, cosine), Floats::times(a, sine)));
  }
  for (; i < half; ++i) {
    const float a = widened(low[i]), b = widened(high[i]), cosine = widened(c[i]), sine = widened(s[i]);
    put(a * cosine - b * sine, low_out + i);
    put(b * cosine + a * sine, high_out + i);
  }
}

constexpr float kSmallestScale = 0x1p-126f;

// Largest magnitude by bit patterns, which order as the magnitudes do, and NaN above all.
template <typename Number>
void quantize(const Number *x, int64_t width, int8_t *kept, float *scale) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    const float value = widened(x[i]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float most;
  std::memcpy(&most, &largest, sizeof most);
  const float step = most / 127.0f < kSmallestScale ? kSmallestScale : most / 127.0f;
  for (int64_t i = 0; i < width; ++i) {
    const float q = widened(x[i]) / step + 12582912.0f;  // 1.5 * 2^23: rounded to nearest even on the way
    uint32_t bits;
    std::memcpy(&bits, &q, sizeof bits);
    kept[i] = static_cast<int8_t>(bits - 0x4b400000u);
  }
  *scale = step;
}

template <typename Number, typename Stored>
void keep(const void *x, int64_t width, void *kept, float *scale) {
  const Number *from = static_cast<const Number *>(x);
  Stored *to = static_cast<Stored *>(kept);
  if constexpr (std::is_same_v<Stored, int8_t>) {
    quantize(from, width, to, scale);
  } else if constexpr (std::is_same_v<Number, Stored>) {
    std::memcpy(to, from, static_cast<size_t>(width) * sizeof(Stored));
  } else {
    for (int64_t i = 0; i < width; ++i) put(widened(from[i]), to + i);
  }
}

}  // namespace
