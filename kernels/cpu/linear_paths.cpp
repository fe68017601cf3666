#include "linear_paths.h"

#include "machine.h"
#include "owl_cpu.h"

namespace {

// Null where the compiler could not make all of it.
const LinearPath *complete(const LinearPath &path) {
  return path.quantized && path.dense_f32 && path.dense_bf16 ? &path : nullptr;
}

const LinearPath *avx512_bf16() {
  static const LinearPath path = {"avx512_bf16", quantized_avx512(), dense_f32_avx512(), dense_bf16_avx512bf16()};
  return complete(path);
}
const LinearPath *avx512_vnni() {
  static const LinearPath path = {"avx512_vnni", quantized_avx512(), dense_f32_avx512(), dense_bf16_avx512()};
  return complete(path);
}
const LinearPath *avx_vnni() {
  static const LinearPath path = {"avx_vnni", quantized_avxvnni(), dense_f32_avx2(), dense_bf16_avx2()};
  return complete(path);
}
const LinearPath *avx2() {
  static const LinearPath path = {"avx2", quantized_avx2(), dense_f32_avx2(), dense_bf16_avx2()};
  return complete(path);
}
const LinearPath *neon_dotprod() {
  static const LinearPath path = {"neon_dotprod", quantized_neon(), dense_f32_neon(), dense_bf16_neon()};
  return complete(path);
}
const LinearPath *portable() {
  static const LinearPath path = {"portable", quantized_portable(), dense_f32_portable(), dense_bf16_portable()};
  return complete(path);
}

const PathList<LinearPath> &paths() {
  static const PathList<LinearPath> found = [] {
    const Machine &has = machine();
    PathList<LinearPath> list;
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

const LinearPath &linear_path(int32_t path) { return *paths().path[path]; }

OWL_API const char *owl_linear_paths() { return paths().names; }
