#if defined(__AVX2__) && defined(__F16C__)
#include "lanes_avx2.h"
#include "quantized_tiles.h"

const QuantizedKernels *quantized_avx2() {
  static const QuantizedKernels kernels = make_quantized();
  return &kernels;
}
#else
#include "quantized_layout.h"

const QuantizedKernels *quantized_avx2() { return nullptr; }
#endif
