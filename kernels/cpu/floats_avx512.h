// 16 floats in a register of AVX-512; with AVX512-BF16 also sums of products of pairs.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Floats {
  static constexpr int kWidth = 16;
  static constexpr int kRows = 6, kVectors = 4;  // sums of a tile: 24 of 32 registers
  static constexpr int kScored = 4;  // rows whose scores are summed at once
  using Float = __m512;

  static Float spread(float value) { return _mm512_set1_ps(value); }
  static Float load(const float *at) { return _mm512_loadu_ps(at); }
  static Float load(const uint16_t *at) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Float load(const int8_t *at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at))));
  }
  static void store(float *at, Float value) { _mm512_storeu_ps(at, value); }
  static void store(uint16_t *at, Float value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(at), _mm512_cvtepi32_epi16(rounded));
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float divide(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float add_product(Float sum, Float a, Float b) { return fma(a, b, sum); }
  static Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }  // b if one is NaN
  static Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float round(Float a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float times_power(Float a, Float n) { return _mm512_scalef_ps(a, n); }  // a 2^n
  static Float first(int64_t count, Float a, Float other) {  // lanes from `count` on: other
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>((1u << count) - 1), a);
  }
  static float largest(Float a) { return _mm512_reduce_max_ps(a); }
  static inline __attribute__((always_inline)) void transpose(Float v[16]) {
    Float t[16], u[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
      const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
      u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {
      const Float even = _mm512_shuffle_f32x4(u[i], u[4 + i], 0x88);
      const Float odd = _mm512_shuffle_f32x4(u[i], u[4 + i], 0xdd);
      const Float more_even = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0x88);
      const Float more_odd = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0xdd);
      v[i] = _mm512_shuffle_f32x4(even, more_even, 0x88);
      v[4 + i] = _mm512_shuffle_f32x4(odd, more_odd, 0x88);
      v[8 + i] = _mm512_shuffle_f32x4(even, more_even, 0xdd);
      v[12 + i] = _mm512_shuffle_f32x4(odd, more_odd, 0xdd);
    }
  }
};

#if defined(__AVX512BF16__)
// Products of bf16 with bf16, two at once for each of 16 sums. Exact products, sums in fp32; values below the
// normal ones count as zero.
struct Pairs {
  using Element = uint32_t;  // the earlier value in the low half
  static constexpr int kPack = 2;
  using Vector = __m512i;    // 32 values

  static __m512 add_product(__m512 sum, Vector a, Vector b) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  static Vector spread(const Element *at) { return _mm512_set1_epi32(static_cast<int>(*at)); }
  static Vector fetch(const Element *at) { return _mm512_loadu_si512(at); }
  static Vector load(const uint16_t *at) { return _mm512_loadu_si512(at); }
  static Vector load(const float *at) { return narrow(Floats::load(at), Floats::load(at + 16)); }
  static Vector load(const int8_t *at) { return narrow(Floats::load(at), Floats::load(at + 16)); }
  static void put(Element *at, Vector value) { _mm512_storeu_si512(at, value); }
  static inline __attribute__((always_inline)) void transpose(Vector v[16]) {
    __m512 wide[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) wide[i] = _mm512_castsi512_ps(v[i]);
    Floats::transpose(wide);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = _mm512_castps_si512(wide[i]);
  }
  // 32 values of two keys -> 32 pairs.
  static void mix(Vector a, Vector b, Vector *low, Vector *high) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                         38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    *low = _mm512_permutex2var_epi16(a, first, b);
    *high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(first, _mm512_set1_epi16(16)), b);
  }
  static Vector zero() { return _mm512_setzero_si512(); }
  // 32 weights, as they are multiplied.
  static void put_weights(Element *at, __m512 a, __m512 b) { put(at, narrow(a, b)); }

 private:
  static Vector narrow(__m512 a, __m512 b) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)); }
};
#endif

}  // namespace
