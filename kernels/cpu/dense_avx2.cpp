#include "dense_layout.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "dense_tiles.h"

namespace {

struct Lanes {
  static constexpr int kMostRows = 2;  // times 4 streams: 8 sums of 16 registers
  static constexpr int64_t kStep = 8;
  using Value = float;
  using Vector = __m256;
  using Sum = __m256;
  static Sum zero() { return _mm256_setzero_ps(); }
  static Vector vector(const float *at) { return _mm256_loadu_ps(at); }
  static Vector vector(const uint16_t *at) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Sum add_product(Sum sum, Vector w, Vector x) { return _mm256_fmadd_ps(w, x, sum); }
  static void totals(const Sum (&sums)[4], float *out) {
    const __m256 ab = _mm256_hadd_ps(sums[0], sums[1]), cd = _mm256_hadd_ps(sums[2], sums[3]);
    const __m256 halves = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
  }
};

}  // namespace

const DenseKernels *dense_f32_avx2() {
  static const DenseKernels kernels = make_dense<Lanes, float>();
  return &kernels;
}
const DenseKernels *dense_bf16_avx2() {
  static const DenseKernels kernels = make_dense<Lanes, uint16_t>();
  return &kernels;
}
#else
const DenseKernels *dense_f32_avx2() { return nullptr; }
const DenseKernels *dense_bf16_avx2() { return nullptr; }
#endif
