#if defined(__AVX2__) && defined(__F16C__) && defined(__AVXVNNI__)
#include "lanes_avx2.h"
#include "quantized_tiles.h"

const Path *path_avxvnni() {
  static const Path path = make_path("avx_vnni");
  return &path;
}
#else
#include "quantized_layout.h"

const Path *path_avxvnni() { return nullptr; }
#endif
