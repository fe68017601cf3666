#include "quantized_layout.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#include <cstring>

namespace {

struct Lanes {
  static constexpr int kMostRows = 4;
  static constexpr int kSums = 4;           // of four registers each, of 32
  static constexpr int kLeastStreams = 1;
  static constexpr int32_t kInt8Offset = 0;  // the dot product takes signed bytes
  struct Int {
    int32x4_t v[4];
  };
  struct Float {
    float32x4_t v[4];
  };
  struct Bytes {
    int8x16_t v[4];
  };
  using Four = int8x16_t;

  template <typename Result, typename Function>
  static Result each(const Function &function) {
    return {{function(0), function(1), function(2), function(3)}};
  }
  static Int spread(int32_t value) {
    return each<Int>([&](int) { return vdupq_n_s32(value); });
  }
  static Float spread(float value) {
    return each<Float>([&](int) { return vdupq_n_f32(value); });
  }
  static Float zero() { return spread(0.0f); }
  static Four four(const int8_t *at) {
    int32_t value;
    std::memcpy(&value, at, sizeof value);
    return vreinterpretq_s8_s32(vdupq_n_s32(value));
  }
  static Bytes whole(const uint8_t *at) {
    return each<Bytes>(
        [&](int i) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 16 * i), vdupq_n_u8(0x80))); });
  }
  static Bytes low(const uint8_t *at) {
    return each<Bytes>(
        [&](int i) { return vreinterpretq_s8_u8(vandq_u8(vld1q_u8(at + 16 * i), vdupq_n_u8(15))); });
  }
  static Bytes high(const uint8_t *at) {
    return each<Bytes>([&](int i) { return vreinterpretq_s8_u8(vshrq_n_u8(vld1q_u8(at + 16 * i), 4)); });
  }
  static Int dot_int8(Int sum, Bytes w, Four x) {
    return each<Int>([&](int i) { return vdotq_s32(sum.v[i], w.v[i], x); });
  }
  static Int dot_int4(Int sum, Bytes w, Four x) { return dot_int8(sum, w, x); }
  static Float to_float(Int value) {
    return each<Float>([&](int i) { return vcvtq_f32_s32(value.v[i]); });
  }
  static Float times(Float a, Float b) {
    return each<Float>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
  }
  static Float plus(Float a, Float b) {
    return each<Float>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
  }
  static Float floats(const float *at) {
    return each<Float>([&](int i) { return vld1q_f32(at + 4 * i); });
  }
  static Float halves(const uint16_t *at) {
    return each<Float>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at + 4 * i))); });
  }
  static void store(float *at, Float value) {
    for (int i = 0; i < 4; ++i) vst1q_f32(at + 4 * i, value.v[i]);
  }
};

}  // namespace

#include "quantized_tiles.h"

const QuantizedKernels *quantized_neon() {
  static const QuantizedKernels kernels = make_quantized();
  return &kernels;
}
#else
const QuantizedKernels *quantized_neon() { return nullptr; }
#endif
