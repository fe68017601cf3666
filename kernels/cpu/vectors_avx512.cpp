#include "vectors.h"

#if defined(__AVX512DQ__)
#include "floats_avx512.h"

#include "vectors_table.h"

const Vectors *vectors_avx512() {
  static const Vectors all = make_vectors<Single>("avx512");
  return &all;
}
#else
const Vectors *vectors_avx512() { return nullptr; }
#endif
