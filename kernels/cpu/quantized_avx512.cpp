#include "quantized_layout.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include <cstring>

namespace {

struct Lanes {
  static constexpr int kMostRows = 12;
  static constexpr int kSums = 12;  // and as many totals, of 32 registers
  static constexpr int kLeastStreams = 2;  // 24 sums of 12 rows
  static constexpr int32_t kInt8Offset = 128;
  using Int = __m512i;
  using Float = __m512;
  using Bytes = __m512i;
  using Four = __m512i;

  static Int spread(int32_t value) { return _mm512_set1_epi32(value); }
  static Float spread(float value) { return _mm512_set1_ps(value); }
  static Float zero() { return _mm512_setzero_ps(); }
  static Four four(const int8_t *at) {
    int32_t value;
    std::memcpy(&value, at, sizeof value);
    return _mm512_set1_epi32(value);
  }
  static Bytes whole(const uint8_t *at) { return _mm512_loadu_si512(at); }
  static Bytes low(const uint8_t *at) { return _mm512_and_si512(whole(at), _mm512_set1_epi8(15)); }
  static Bytes high(const uint8_t *at) {
    return _mm512_and_si512(_mm512_srli_epi16(whole(at), 4), _mm512_set1_epi8(15));
  }
  // Not the intrinsic: GCC 12 copies its accumulator before every use, and runs out of registers.
  static Int dot_int4(Int sum, Bytes w, Four x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  static Int dot_int8(Int sum, Bytes w, Four x) { return dot_int4(sum, w, x); }
  static Float to_float(Int value) { return _mm512_cvtepi32_ps(value); }
  static Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float plus(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float floats(const float *at) { return _mm512_loadu_ps(at); }
  static Float halves(const uint16_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(at)));
  }
  static void store(float *at, Float value) { _mm512_storeu_ps(at, value); }
};

}  // namespace

#include "quantized_tiles.h"

const QuantizedKernels *quantized_avx512() {
  static const QuantizedKernels kernels = make_quantized();
  return &kernels;
}
#else
const QuantizedKernels *quantized_avx512() { return nullptr; }
#endif
