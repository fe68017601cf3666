// RMSNorm over the last axis. Each row is computed alone and in a fixed order, so its bits depend neither on
// the number of rows nor on the machine: 16 partial sums of squares (lane i takes elements i, i+16, ...), then
// a fixed tree.
#include <cmath>

#include "bf16.h"
#include "owl_cpu.h"

namespace {

constexpr int64_t kLanes = 16;

template <typename T>
inline float mean_square(const T *x, int64_t width) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    float block[kLanes];  // widened first: the compiler vectorizes the two loops apart, not joined
    for (int64_t lane = 0; lane < kLanes; ++lane) block[lane] = widened(x[i + lane]);
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += block[lane] * block[lane];
  }
  for (int64_t lane = 0; i + lane < width; ++lane) {
    const float value = widened(x[i + lane]);
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
      put(widened(x[i]) * scale, &normed);
      put(widened(normed) * widened(weight[i]), &out[i]);
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
