// Which instruction sets attention and elementwise operations can use on this machine.
#include "vectors.h"

#include "machine.h"

namespace {

const PathList<Vectors> &paths() {
  static const PathList<Vectors> found = [] {
    const Machine &has = machine();
    PathList<Vectors> list;
    list.add(vectors_avx512bf16, has.avx512bf16);
    list.add(vectors_avx512, has.avx512);
    list.add(vectors_avx2, has.avx2);
    list.add(vectors_neon, has.neon);
    list.add(vectors_portable, true);
    return list;
  }();
  return found;
}

}  // namespace

const Vectors &vectors_of(int32_t path) { return *paths().path[path]; }

OWL_API const char *owl_vector_paths() { return paths().names; }

OWL_API void owl_exp(const float *x, float *y, int64_t count, int32_t path) { vectors_of(path).exp(x, y, count); }
