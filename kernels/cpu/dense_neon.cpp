#include "dense_layout.h"

#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>

#include "dense_tiles.h"

namespace {

struct Lanes {
  static constexpr int kMostRows = 4;  // times 4 streams: 16 sums of 32 registers
  static constexpr int64_t kStep = 4;
  using Value = float;
  using Vector = float32x4_t;
  using Sum = float32x4_t;
  static Sum zero() { return vdupq_n_f32(0.0f); }
  static Vector vector(const float *at) { return vld1q_f32(at); }
  static Vector vector(const uint16_t *at) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16)); }
  static Sum add_product(Sum sum, Vector w, Vector x) { return vfmaq_f32(sum, w, x); }
  static void totals(const Sum (&sums)[4], float *out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(sums[0], sums[1]), vpaddq_f32(sums[2], sums[3])));
  }
};

}  // namespace

const DenseKernels *dense_f32_neon() {
  static const DenseKernels kernels = make_dense<Lanes, float>();
  return &kernels;
}
const DenseKernels *dense_bf16_neon() {
  static const DenseKernels kernels = make_dense<Lanes, uint16_t>();
  return &kernels;
}
#else
const DenseKernels *dense_f32_neon() { return nullptr; }
const DenseKernels *dense_bf16_neon() { return nullptr; }
#endif
