#include "dense_tiles.h"

namespace {

struct Lanes {
  static constexpr int kMostRows = 2;
  static constexpr int64_t kStep = 16;  // the more, the smaller the error of long sums
  using Value = float;
  struct Vector {
    float v[kStep];
  };
  using Sum = Vector;

  static Sum zero() { return {}; }
  template <typename T>
  static Vector vector(const T *at) {
    Vector result;
    for (int i = 0; i < kStep; ++i) result.v[i] = widened(at[i]);
    return result;
  }
  static Sum add_product(Sum sum, const Vector &w, const Vector &x) {
    for (int i = 0; i < kStep; ++i) sum.v[i] += w.v[i] * x.v[i];
    return sum;
  }
  static void totals(Sum (&sums)[4], float *out) {
    for (int s = 0; s < 4; ++s) {
      for (int64_t half = kStep / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) sums[s].v[i] += sums[s].v[i + half];
      }
      out[s] = sums[s].v[0];
    }
  }
};

}  // namespace

const DenseKernels *dense_f32_portable() {
  static const DenseKernels kernels = make_dense<Lanes, float>();
  return &kernels;
}
const DenseKernels *dense_bf16_portable() {
  static const DenseKernels kernels = make_dense<Lanes, uint16_t>();
  return &kernels;
}
