// RMSNorm over the last axis. Each row is computed alone and in a fixed order, so its bits depend neither on
// the number of rows nor on the machine: 16 partial sums of squares (lane i takes elements i, i+16, ...), then
// a fixed tree.
#include <cmath>
#include <cstring>

#include "owl_cpu.h"

namespace {

constexpr int64_t kLanes = 16;

inline float load(float value) { return value; }

inline float load(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline void store(float value, float *to) { *to = value; }

// Round to nearest even, as torch does; NaN stays NaN (rounding its bits could turn it into infinity).
inline void store(float value, uint16_t *to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *to = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

template <typename T>
inline float mean_square(const T *x, int64_t width) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    float block[kLanes];  // widened first: the compiler vectorizes the two loops apart, not joined
    for (int64_t lane = 0; lane < kLanes; ++lane) block[lane] = load(x[i + lane]);
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += block[lane] * block[lane];
  }
  for (int64_t lane = 0; i + lane < width; ++lane) {
    const float value = load(x[i + lane]);
    lanes[lane] += value * value;
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0] / static_cast<float>(width);
}

template <typename T>
inline void rms_norm(const T *x, const T *weight, T *out, int64_t rows, int64_t width, float eps) {
  for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
    const float scale = 1.0f / std::sqrt(mean_square(x, width) + eps);
    for (int64_t i = 0; i < width; ++i) {
      T normed;
      store(load(x[i]) * scale, &normed);
      store(load(normed) * load(weight[i]), &out[i]);
    }
  }
}

}  // namespace

OWL_API OWL_MULTIVERSION void owl_rms_norm_f32(const float *x, const float *weight, float *out, int64_t rows,
                                               int64_t width, float eps) {
  rms_norm(x, weight, out, rows, width, eps);
}

OWL_API OWL_MULTIVERSION void owl_rms_norm_bf16(const uint16_t *x, const uint16_t *weight, uint16_t *out,
                                                int64_t rows, int64_t width, float eps) {
  rms_norm(x, weight, out, rows, width, eps);
}
