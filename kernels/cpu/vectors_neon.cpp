#include "vectors.h"

#if defined(__aarch64__)
#include "floats_neon.h"

#include "vectors_table.h"

const Vectors *vectors_neon() {
  static const Vectors all = make_vectors<Single>("neon");
  return &all;
}
#else
const Vectors *vectors_neon() { return nullptr; }
#endif
