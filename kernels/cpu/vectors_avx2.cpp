#include "vectors.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "floats_avx2.h"

#include "vectors_table.h"

const Vectors *vectors_avx2() {
  static const Vectors all = make_vectors<Single>("avx2");
  return &all;
}
#else
const Vectors *vectors_avx2() { return nullptr; }
#endif
