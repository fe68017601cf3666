// Norms, activations, their gradients, quantized weights written out: rows shared out among the threads.
#include "owl_cpu.h"
#include "pool.h"
#include "vectors.h"

namespace {

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

OWL_API void owl_swiglu_backward(owl_pool *pool, int32_t type, const void *gate_up, const void *dy, void *dx,
                                 int64_t rows, int64_t width, int32_t path) {
  const Vectors &vectors = vectors_of(path);
  each_row(pool, rows, width, [&](int64_t row) {
    const char *gate = row_of(gate_up, row, 2 * width, type);
    char *dgate = row_of(dx, row, 2 * width, type);
    const int64_t half = width * kSizes[type];
    vectors.swiglu_gradient[type](gate, gate + half, row_of(dy, row, width, type), width, dgate, dgate + half);
  });
}

OWL_API void owl_rms_norm_backward(owl_pool *pool, int32_t type, const void *x, const void *weight, const void *dy,
                                   void *dx, int64_t rows, int64_t width, float eps, int32_t path) {
  const Vectors &vectors = vectors_of(path);
  each_row(pool, rows, width, [&](int64_t row) {
    vectors.rms_norm_gradient[type](row_of(x, row, width, type), weight, row_of(dy, row, width, type), width, eps,
                                    row_of(dx, row, width, type));
  });
}

OWL_API void owl_dequantize(owl_pool *pool, int32_t form, int32_t type, const uint8_t *q, int64_t q_row,
                            const float *scale, void *out, int64_t rows, int64_t width, int64_t group, int32_t path) {
  const Vectors &vectors = vectors_of(path);
  const Expand expand = (form == OWL_INT8 ? vectors.int8 : vectors.int4)[type];
  const int64_t scales = form == OWL_INT8 ? 1 : (width + group - 1) / group;
  each_row(pool, rows, width, [&](int64_t row) {
    expand(q + row * q_row, scale + row * scales, width, group, row_of(out, row, width, type));
  });
}
