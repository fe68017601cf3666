// 4 floats in a register of NEON.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct Floats {
  static constexpr int kWidth = 4;
  static constexpr int kRows = 6, kVectors = 4;  // sums of a tile: 24 of 32 registers
  static constexpr int kScored = 6;  // rows whose scores are summed at once
  using Float = float32x4_t;

  static Float spread(float value) { return vdupq_n_f32(value); }
  static Float load(const float *at) { return vld1q_f32(at); }
  static Float load(const uint16_t *at) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16)); }
  static Float load(const int8_t *at) {
    int32_t four;
    std::memcpy(&four, at, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static void store(float *at, Float value) { vst1q_f32(at, value); }
  static void store(uint16_t *at, Float value) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t rounded = vbslq_u32(vceqq_f32(value, value), vshrq_n_u32(up, 16), vdupq_n_u32(0x7fc0));
    vst1_u16(at, vmovn_u32(rounded));
  }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float subtract(Float a, Float b) { return vsubq_f32(a, b); }
  static Float times(Float a, Float b) { return vmulq_f32(a, b); }
  static Float divide(Float a, Float b) { return vdivq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float add_product(Float sum, Float a, Float b) { return vfmaq_f32(sum, a, b); }
  static Float larger(Float a, Float b) { return vmaxq_f32(a, b); }  // NaN if one is NaN
  static Float smaller(Float a, Float b) { return vminq_f32(a, b); }
  static Float round(Float a) { return vrndnq_f32(a); }
  static Float times_power(Float a, Float n) {  // a 2^n, in two steps: 2^n alone may lie beyond all floats
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    return vmulq_f32(vmulq_f32(a, power(half)), power(vsubq_s32(whole, half)));
  }
  static Float first(int64_t count, Float a, Float other) {  // lanes from `count` on: other
    static const int32_t lanes[4] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(static_cast<int32_t>(count))), a, other);
  }
  static float largest(Float a) { return vmaxvq_f32(a); }
  static inline __attribute__((always_inline)) void transpose(Float v[4]) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(v[0], v[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(v[0], v[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(v[2], v[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(v[2], v[3]));
    v[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    v[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    v[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    v[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
  }

 private:
  static Float power(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
};

}  // namespace
