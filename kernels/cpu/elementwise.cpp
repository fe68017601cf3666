// Layer norm and activations: rows shared out among the threads.
#include "owl_cpu.h"
#include "pool.h"
#include "vectors.h"

namespace {

constexpr int64_t kFewValues = 1 << 15;  // done sooner than other threads wake up
constexpr int64_t kItemValues = 1 << 13;
constexpr int64_t kSizes[2] = {4, 2};

inline const char *row_of(const void *data, int64_t row, int64_t stride, int32_t type) {
  return static_cast<const char *>(data) + row * stride * kSizes[type];
}
inline char *row_of(void *data, int64_t row, int64_t stride, int32_t type) {
  return static_cast<char *>(data) + row * stride * kSizes[type];
}

template <typename Function>
void each_row(owl_pool *pool, int64_t rows, int64_t width, const Function &function) {
  const int64_t together = width > 0 && width < kItemValues ? kItemValues / width : 1;
  parallel(rows * width > kFewValues ? pool : nullptr, (rows + together - 1) / together, [&](int64_t item) {
    for (int64_t row = item * together; row < rows && row < (item + 1) * together; ++row) function(row);
  });
}

}  // namespace

OWL_API void owl_layer_norm(owl_pool *pool, int32_t type, const void *x, const void *weight, const void *bias,
                            void *out, int64_t rows, int64_t width, float eps, int32_t path) {
  const Vectors &vectors = vectors_of(path);
  each_row(pool, rows, width, [&](int64_t row) {
    vectors.layer_norm[type](row_of(x, row, width, type), weight, bias, width, eps, row_of(out, row, width, type));
  });
}

OWL_API void owl_swiglu(owl_pool *pool, int32_t type, const void *gate_up, void *out, int64_t rows, int64_t width,
                        int32_t path) {
  const Vectors &vectors = vectors_of(path);
  each_row(pool, rows, width, [&](int64_t row) {
    const char *gate = row_of(gate_up, row, 2 * width, type);
    vectors.swiglu[type](gate, gate + width * kSizes[type], width, row_of(out, row, width, type));
  });
}

OWL_API void owl_quick_gelu(owl_pool *pool, int32_t type, const void *x, const void *bias, void *out, int64_t rows,
                            int64_t width, int32_t path) {
  const Vectors &vectors = vectors_of(path);
  each_row(pool, rows, width, [&](int64_t row) {
    vectors.quick_gelu[type](row_of(x, row, width, type), bias, width, row_of(out, row, width, type));
  });
}
