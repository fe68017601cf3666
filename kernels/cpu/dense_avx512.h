// Sums of 16 lanes in a register of AVX-512.
#pragma once

#include <immintrin.h>

namespace {

struct Sums512 {
  static constexpr int kMostRows = 6;  // times 4 streams: 24 sums of 32 registers
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static void totals(const Sum (&sums)[4], float *out) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
    const __m512 quarters = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
  }
};

}  // namespace
