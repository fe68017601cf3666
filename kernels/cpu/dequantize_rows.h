// One row of a quantized weight written out, over `Floats`: the whole number times its scale in fp32, rounded once.
#pragma once

#include <cstdint>

#include "elementwise_rows.h"

namespace {

// count values from `value` on, which share a scale.
template <typename Number>
inline void scaled(const int8_t *value, float scale, int64_t count, Number *out) {
  const Float factor = Floats::spread(scale);
  for (int64_t i = 0; i < count; i += Floats::kWidth) {
    store_some(out + i, Floats::times(load_some(value + i, count - i), factor), count - i);
  }
}

template <typename Number>
void expand_int8(const uint8_t *q, const float *scale, int64_t width, int64_t, void *out) {
  scaled(reinterpret_cast<const int8_t *>(q), *scale, width, static_cast<Number *>(out));
}

template <typename Number>
void expand_int4(const uint8_t *q, const float *scale, int64_t width, int64_t group, void *out) {
  constexpr int64_t kPart = 1024;  // values taken apart at a time
  int8_t value[kPart];
  for (int64_t first = 0; first < width; first += kPart) {
    const int64_t end = width - first < kPart ? width : first + kPart;
    const uint8_t *pair = q + first / 2;
    for (int64_t i = 0; i < (end - first + 1) / 2; ++i) {
      value[2 * i] = static_cast<int8_t>((pair[i] & 15) - 8);
      value[2 * i + 1] = static_cast<int8_t>((pair[i] >> 4) - 8);
    }
    for (int64_t k = first; k < end;) {
      const int64_t last = (k / group + 1) * group, count = (last < end ? last : end) - k;
      scaled(value + (k - first), scale[k / group], count, static_cast<Number *>(out) + k);
      k += count;
    }
  }
}

}  // namespace
