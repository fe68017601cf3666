#if defined(__AVX2__) && defined(__F16C__) && defined(__AVXVNNI__)
#include "lanes_avx2.h"
#include "quantized_tiles.h"

const QuantizedKernels *quantized_avxvnni() {
  static const QuantizedKernels kernels = make_quantized();
  return &kernels;
}
#else
#include "quantized_layout.h"

const QuantizedKernels *quantized_avxvnni() { return nullptr; }
#endif
