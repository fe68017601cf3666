#include "dense_layout.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include "dense_avx512.h"
#include "dense_tiles.h"

namespace {

// Pairs of neighbours in one instruction, which takes numbers below 2^-126 for zero.
struct PairLanes : Sums512 {
  static constexpr int64_t kStep = 32;
  using Value = uint16_t;
  using Vector = __m512i;
  static Vector vector(const uint16_t *at) { return _mm512_loadu_si512(at); }
  // Not the intrinsic: GCC 12 copies its accumulator before every use, and runs out of registers.
  static Sum add_product(Sum sum, Vector w, Vector x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
};

}  // namespace

const DenseKernels *dense_bf16_avx512bf16() {
  static const DenseKernels kernels = make_dense<PairLanes, uint16_t>();
  return &kernels;
}
#else
const DenseKernels *dense_bf16_avx512bf16() { return nullptr; }
#endif
