// 16 values in two registers of AVX2; with AVX-VNNI the dot products are single instructions.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "quantized_layout.h"

namespace {

struct Lanes {
  static constexpr int kMostRows = 4;
  static constexpr int kSums = 4;  // pairs, of 16 registers
  static constexpr int kLeastStreams = 1;
  struct Int {
    __m256i a, b;
  };
  struct Float {
    __m256 a, b;
  };
  using Bytes = Int;
  using Four = __m256i;

  static Int spread(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static Float spread(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Float zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Four four(const int8_t *at) {
    int32_t value;
    std::memcpy(&value, at, sizeof value);
    return _mm256_set1_epi32(value);
  }
  static Bytes raw(const uint8_t *at) {
    const __m256i *place = reinterpret_cast<const __m256i *>(at);
    return {_mm256_loadu_si256(place), _mm256_loadu_si256(place + 1)};
  }
  static Bytes low(const uint8_t *at) {
    const Bytes both = raw(at);
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(both.a, mask), _mm256_and_si256(both.b, mask)};
  }
  static Bytes high(const uint8_t *at) {
    const Bytes both = raw(at);
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(both.a, 4), mask),
            _mm256_and_si256(_mm256_srli_epi16(both.b, 4), mask)};
  }
#if defined(__AVXVNNI__)
  static constexpr int32_t kInt8Offset = 128;
  static Bytes whole(const uint8_t *at) { return raw(at); }
  static __m256i dot(__m256i sum, __m256i w, __m256i x) {  // not the intrinsic: as in quantized_avx512.cpp
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
    return sum;
  }
  static Int dot_int4(Int sum, Bytes w, Four x) { return {dot(sum.a, w.a, x), dot(sum.b, w.b, x)}; }
  static Int dot_int8(Int sum, Bytes w, Four x) { return dot_int4(sum, w, x); }
#else
  static constexpr int32_t kInt8Offset = 0;
  static Bytes whole(const uint8_t *at) {
    const Bytes both = raw(at);
    const __m256i sign = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(both.a, sign), _mm256_xor_si256(both.b, sign)};
  }
  static __m256i dot(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // Two products of at most 15 * 127 fit 16 bits.
  static Int dot_int4(Int sum, Bytes w, Four x) { return {dot(sum.a, w.a, x), dot(sum.b, w.b, x)}; }
  // So do two of at most 128 * 127, once the sign has moved from the weights, -128 to 127, to x.
  static Int dot_int8(Int sum, Bytes w, Four x) {
    return {dot(sum.a, _mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a)),
            dot(sum.b, _mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b))};
  }
#endif
  static Float to_float(Int value) { return {_mm256_cvtepi32_ps(value.a), _mm256_cvtepi32_ps(value.b)}; }
  static Float times(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static Float plus(Float x, Float y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static Float floats(const float *at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
  static Float halves(const uint16_t *at) {
    const __m128i *place = reinterpret_cast<const __m128i *>(at);
    return {_mm256_cvtph_ps(_mm_loadu_si128(place)), _mm256_cvtph_ps(_mm_loadu_si128(place + 1))};
  }
  static void store(float *at, Float value) {
    _mm256_storeu_ps(at, value.a);
    _mm256_storeu_ps(at + 8, value.b);
  }
};

}  // namespace
