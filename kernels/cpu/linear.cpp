// owl_linear: who does what, and where intermediate results lie.
#include "linear.h"

Linear::Linear(const owl_linear_task &task_, uint8_t *workspace)
    : task(task_),
      quantized(*linear_path(task.path).quantized),
      dense(*(task.type == OWL_F32 ? linear_path(task.path).dense_f32 : linear_path(task.path).dense_bf16)),
      layout(task.form, task.n, task.k, task.group),
      blocks(task.rows, quantized.most_rows),
      dense_blocks(task.rows, dense.most_rows),
      is_quantized(task.form != OWL_DENSE),
      has_update(task.lora_a != nullptr && task.rank > 0) {
  bytes = 0;
  const auto place = [&](bool wanted, int64_t size) {
    uint8_t *const at = wanted ? workspace + bytes : nullptr;
    bytes += wanted ? rounded_up(size, 64) : 0;
    return at;
  };
  normed = place(task.norm != nullptr, task.rows * task.k * type_bytes());
  x8 = reinterpret_cast<int8_t *>(place(is_quantized, task.rows * layout.padded_k()));
  x_scale = reinterpret_cast<float *>(place(is_quantized, task.rows * layout.groups * 4));
  start = reinterpret_cast<int32_t *>(place(is_quantized, task.rows * layout.groups * 4));
  packed_x = place(!is_quantized || has_update, task.rows * dense.row_bytes(task.k));
  low = reinterpret_cast<float *>(place(has_update, task.rows * task.rank * 4));
  gate_up = reinterpret_cast<float *>(place(task.activation == OWL_SWIGLU, task.rows * task.n * 4));
}

namespace {

const uint8_t *norm_row(const Linear &linear, int64_t row) {
  const owl_linear_task &task = linear.task;
  const int64_t place = row * task.k * linear.type_bytes();
  const uint8_t *x = static_cast<const uint8_t *>(task.x) + place;
  if (task.norm == nullptr) return x;
  uint8_t *out = linear.normed + place;
  if (task.type == OWL_F32) {
    owl_rms_norm_f32(reinterpret_cast<const float *>(x), static_cast<const float *>(task.norm),
                     reinterpret_cast<float *>(out), 1, task.k, task.eps);
  } else {
    owl_rms_norm_bf16(reinterpret_cast<const uint16_t *>(x), static_cast<const uint16_t *>(task.norm),
                      reinterpret_cast<uint16_t *>(out), 1, task.k, task.eps);
  }
  return out;
}

void quantize_row(const Linear &linear, const uint8_t *x, int64_t row) {
  const Layout &layout = linear.layout;
  const int64_t block = linear.blocks.of(row), first = linear.blocks.first(block);
  const RowTask to = {linear.x8 + first * layout.padded_k(),
                      linear.x_scale + first * layout.groups,
                      linear.start + first * layout.groups,
                      linear.blocks.size(block),
                      row - first,
                      &layout};
  if (linear.task.type == OWL_F32) {
    linear.quantized.quantize_f32(reinterpret_cast<const float *>(x), to);
  } else {
    linear.quantized.quantize_bf16(reinterpret_cast<const uint16_t *>(x), to);
  }
}

void pack_row(const Linear &linear, const uint8_t *x, int64_t row) {
  const int64_t block = linear.dense_blocks.of(row), step = linear.dense.step * linear.dense.value_bytes;
  uint8_t *out = linear.packed_x + linear.dense_blocks.first(block) * linear.dense.row_bytes(linear.task.k);
  const int64_t before = row - linear.dense_blocks.first(block);
  linear.dense.pack(x, linear.task.k, out + before * step, linear.dense_blocks.size(block) * step);
}

}  // namespace

void pack_inputs(owl_pool *pool, const Linear &linear) {
  const bool few = linear.task.rows * linear.task.k <= kFewValues;
  parallel(few ? nullptr : pool, linear.task.rows, [&](int64_t row) {
    const uint8_t *x = norm_row(linear, row);
    if (linear.is_quantized) quantize_row(linear, x, row);
    if (linear.packed_x != nullptr) pack_row(linear, x, row);
  });
}

OWL_API int64_t owl_linear_workspace(const owl_linear_task *task) { return Linear(*task, nullptr).bytes; }

OWL_API void owl_linear(owl_pool *pool, const owl_linear_task *task, uint8_t *workspace) {
  if (task->rows == 0 || task->n == 0) return;
  const Linear linear(*task, workspace);
  pack_inputs(pool, linear);
  if (linear.has_update) shrink(pool, linear);
  (linear.is_quantized ? multiply_quantized : multiply_dense)(pool, linear);
  if (linear.gate_up != nullptr) finish_swiglu(pool, linear);
}
