// exp over `Floats`, which each instruction set defines before it includes this. Error at most 2 ulp.
#pragma once

#include <initializer_list>

namespace {

using Float = Floats::Float;

// 2^f for |f| <= 1/2: relative error 2e-9 before rounding, fitted on Chebyshev points with weights.
inline Float power_of_fraction(Float f) {
  Float p = Floats::spread(0x1.41fbb8p-13f);
  for (const float c : {0x1.5f3e54p-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e430p-1f, 1.0f}) {
    p = Floats::fma(p, f, Floats::spread(c));
  }
  return p;
}

// Beyond these 2^x is 0 or infinite anyway. NaN stays.
inline Float clamped(Float x, float most) {
  return Floats::smaller(Floats::spread(most), Floats::larger(Floats::spread(-most), x));
}

inline Float exp2_of(Float x) {
  x = clamped(x, 160.0f);
  const Float n = Floats::round(x);
  return Floats::times_power(power_of_fraction(Floats::subtract(x, n)), n);
}

inline Float exp_of(Float x) {
  x = clamped(x, 110.0f);
  const Float log2_e = Floats::spread(0x1.715476p+0f), rest = Floats::spread(0x1.4ae0cp-26f);
  const Float n = Floats::round(Floats::times(x, log2_e));
  const Float minus = Floats::subtract(Floats::spread(0.0f), n);
  const Float f = Floats::fma(x, rest, Floats::fma(x, log2_e, minus));
  return Floats::times_power(power_of_fraction(f), n);
}

// Lanes in a fixed tree.
inline float total_of(Float a) {
  alignas(64) float lanes[Floats::kWidth];
  Floats::store(lanes, a);
  for (int half = Floats::kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace
