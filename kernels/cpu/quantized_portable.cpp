#include <cstring>

#include "quantized_layout.h"

namespace {

struct Lanes {
  static constexpr int kMostRows = 2;
  static constexpr int kSums = 2;
  static constexpr int kLeastStreams = 1;
  static constexpr int32_t kInt8Offset = 128;
  static constexpr int kWidth = 16;
  struct Int {
    int32_t v[kWidth];
  };
  struct Float {
    float v[kWidth];
  };
  struct Bytes {
    uint8_t v[4 * kWidth];
  };
  using Four = const int8_t *;

  template <typename Result, typename Function>
  static Result each(const Function &function) {
    Result result;
    for (int i = 0; i < static_cast<int>(sizeof result.v / sizeof result.v[0]); ++i) result.v[i] = function(i);
    return result;
  }
  static Int spread(int32_t value) {
    return each<Int>([&](int) { return value; });
  }
  static Float spread(float value) {
    return each<Float>([&](int) { return value; });
  }
  static Float zero() { return spread(0.0f); }
  static Four four(const int8_t *at) { return at; }
  static Bytes whole(const uint8_t *at) {
    return each<Bytes>([&](int i) { return at[i]; });
  }
  static Bytes low(const uint8_t *at) {
    return each<Bytes>([&](int i) { return static_cast<uint8_t>(at[i] & 15); });
  }
  static Bytes high(const uint8_t *at) {
    return each<Bytes>([&](int i) { return static_cast<uint8_t>(at[i] >> 4); });
  }
  static Int dot_int8(const Int &sum, const Bytes &w, Four x) {
    return each<Int>([&](int i) {
      int32_t dot = sum.v[i];
      for (int j = 0; j < 4; ++j) dot += w.v[4 * i + j] * x[j];
      return dot;
    });
  }
  static Int dot_int4(const Int &sum, const Bytes &w, Four x) { return dot_int8(sum, w, x); }
  static Float to_float(const Int &value) {
    return each<Float>([&](int i) { return static_cast<float>(value.v[i]); });
  }
  static Float times(const Float &a, const Float &b) {
    return each<Float>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Float plus(const Float &a, const Float &b) {
    return each<Float>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Float floats(const float *at) {
    return each<Float>([&](int i) { return at[i]; });
  }
  static Float halves(const uint16_t *at) {
    return each<Float>([&](int i) { return from_half(at[i]); });
  }
  static void store(float *at, const Float &value) { std::memcpy(at, value.v, sizeof value.v); }

  static float from_half(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest < 0x0400u) {  // zero, or below the normal ones: a multiple of 2^-24
      const float value = static_cast<float>(rest) * 5.9604644775390625e-08f;
      return sign != 0 ? -value : value;
    }
    const uint32_t wide = sign | (rest >= 0x7c00u ? 0x7f800000u | (rest & 0x3ffu) << 13
                                                  : (rest << 13) + (112u << 23));
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

}  // namespace

#include "quantized_tiles.h"

const QuantizedKernels *quantized_portable() {
  static const QuantizedKernels kernels = make_quantized();
  return &kernels;
}
