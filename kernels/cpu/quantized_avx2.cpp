#if defined(__AVX2__) && defined(__F16C__)
#include "lanes_avx2.h"
#include "quantized_tiles.h"

const Path *path_avx2() {
  static const Path path = make_path("avx2");
  return &path;
}
#else
#include "quantized_layout.h"

const Path *path_avx2() { return nullptr; }
#endif
