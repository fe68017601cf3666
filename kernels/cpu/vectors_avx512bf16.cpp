#include "vectors.h"

#if defined(__AVX512BF16__)
#include "floats_avx512.h"

#include "vectors_table.h"

const Vectors *vectors_avx512bf16() {
  static const Vectors all = make_vectors<Pairs>("avx512_bf16");
  return &all;
}
#else
const Vectors *vectors_avx512bf16() { return nullptr; }
#endif
