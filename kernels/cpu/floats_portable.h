// 8 floats in an array, for any machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace {

struct Floats {
  static constexpr int kWidth = 8;
  static constexpr int kRows = 2, kVectors = 2;
  static constexpr int kScored = 2;  // rows whose scores are summed at once
  struct Float {
    float v[kWidth];
  };

  template <typename Function>
  static Float each(const Function &function) {
    Float result;
    for (int i = 0; i < kWidth; ++i) result.v[i] = function(i);
    return result;
  }
  static Float spread(float value) {
    return each([&](int) { return value; });
  }
  static Float load(const float *at) {
    return each([&](int i) { return at[i]; });
  }
  static Float load(const uint16_t *at) {
    return each([&](int i) { return widened(at[i]); });
  }
  static Float load(const int8_t *at) {
    return each([&](int i) { return static_cast<float>(at[i]); });
  }
  static void store(float *at, const Float &value) { std::memcpy(at, value.v, sizeof value.v); }
  static void store(uint16_t *at, const Float &value) {
    for (int i = 0; i < kWidth; ++i) at[i] = narrowed(value.v[i]);
  }
  static Float add(const Float &a, const Float &b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Float subtract(const Float &a, const Float &b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static Float times(const Float &a, const Float &b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Float divide(const Float &a, const Float &b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static Float fma(const Float &a, const Float &b, const Float &c) {  // in double the product is exact
    return each([&](int i) { return static_cast<float>(static_cast<double>(a.v[i]) * b.v[i] + c.v[i]); });
  }
  static Float add_product(const Float &sum, const Float &a, const Float &b) { return add(sum, times(a, b)); }
  static Float larger(const Float &a, const Float &b) {  // b if one is NaN
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Float smaller(const Float &a, const Float &b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Float round(const Float &a) {  // up to 2^22: sums of the size of 1.5 * 2^23 have no fraction
    return each([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; });
  }
  static Float times_power(const Float &a, const Float &n) {  // a 2^n, in two steps, as 2^n may lie beyond
    return each([&](int i) {
      const int32_t whole = n.v[i] == n.v[i] ? static_cast<int32_t>(n.v[i]) : 0, half = whole / 2;
      return a.v[i] * power(half) * power(whole - half);
    });
  }
  static Float first(int64_t count, const Float &a, const Float &other) {  // lanes from `count` on: other
    return each([&](int i) { return i < count ? a.v[i] : other.v[i]; });
  }
  static float largest(const Float &a) {
    float most = a.v[0];
    for (int i = 1; i < kWidth; ++i) most = most > a.v[i] ? most : a.v[i];
    return most;
  }
  static inline __attribute__((always_inline)) void transpose(Float v[kWidth]) {
    for (int i = 0; i < kWidth; ++i) {
      for (int j = 0; j < i; ++j) {
        const float kept = v[i].v[j];
        v[i].v[j] = v[j].v[i];
        v[j].v[i] = kept;
      }
    }
  }

 private:
  static float power(int32_t n) {
    const int32_t bits = (n + 127) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

}  // namespace
