#include "dense_layout.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "dense_avx512.h"
#include "dense_tiles.h"

namespace {

struct Lanes : Sums512 {
  static constexpr int64_t kStep = 16;
  using Value = float;
  using Vector = __m512;
  static Vector vector(const float *at) { return _mm512_loadu_ps(at); }
  static Vector vector(const uint16_t *at) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Sum add_product(Sum sum, Vector w, Vector x) { return _mm512_fmadd_ps(w, x, sum); }
};

}  // namespace

const DenseKernels *dense_f32_avx512() {
  static const DenseKernels kernels = make_dense<Lanes, float>();
  return &kernels;
}
const DenseKernels *dense_bf16_avx512() {
  static const DenseKernels kernels = make_dense<Lanes, uint16_t>();
  return &kernels;
}
#else
const DenseKernels *dense_f32_avx512() { return nullptr; }
const DenseKernels *dense_bf16_avx512() { return nullptr; }
#endif
