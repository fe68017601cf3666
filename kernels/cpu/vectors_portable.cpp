#include "floats_portable.h"

#include "vectors_table.h"

const Vectors *vectors_portable() {
  static const Vectors all = make_vectors<Single>("portable");
  return &all;
}
