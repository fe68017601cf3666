#include "paths.h"

#include "machine.h"
#include "owl_cpu.h"

namespace {

// Null where the compiler could not make all of it.
const Path *complete(const Path &path) {
  return path.quantized && path.dense_f32 && path.dense_bf16 ? &path : nullptr;
}

const Path *avx512_bf16() {
  static const Path path = {"avx512_bf16", quantized_avx512(), dense_f32_avx512(), dense_bf16_avx512bf16()};
  return complete(path);
}
const Path *avx512_vnni() {
  static const Path path = {"avx512_vnni", quantized_avx512(), dense_f32_avx512(), dense_bf16_avx512()};
  return complete(path);
}
const Path *avx_vnni() {
  static const Path path = {"avx_vnni", quantized_avxvnni(), dense_f32_avx2(), dense_bf16_avx2()};
  return complete(path);
}
const Path *avx2() {
  static const Path path = {"avx2", quantized_avx2(), dense_f32_avx2(), dense_bf16_avx2()};
  return complete(path);
}
const Path *neon_dotprod() {
  static const Path path = {"neon_dotprod", quantized_neon(), dense_f32_neon(), dense_bf16_neon()};
  return complete(path);
}
const Path *portable() {
  static const Path path = {"portable", quantized_portable(), dense_f32_portable(), dense_bf16_portable()};
  return complete(path);
}

const PathList<Path> &paths() {
  static const PathList<Path> found = [] {
    const Machine &has = machine();
    PathList<Path> list;
    list.add(avx512_bf16, has.avx512vnni && has.avx512bf16);
    list.add(avx512_vnni, has.avx512vnni);
    list.add(avx_vnni, has.avxvnni);
    list.add(avx2, has.avx2);
    list.add(neon_dotprod, has.dotprod);
    list.add(portable, true);
    return list;
  }();
  return found;
}

}  // namespace

const Path &path_at(int32_t place) { return *paths().path[place]; }

OWL_API const char *owl_linear_paths() { return paths().names; }
