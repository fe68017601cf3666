// Gradients of the norm and the gate of one row, over `Floats`: fp32 inside, rounded once at the end.
#pragma once

#include <cmath>
#include <cstdint>

#include "elementwise_rows.h"

namespace {

// With n = x scale and g = dy weight:  dx = scale (g - n mean(g n)).
template <typename Number>
void rms_norm_gradient(const void *row, const void *gain, const void *given, int64_t width, float eps, void *out) {
  const Number *x = static_cast<const Number *>(row), *weight = static_cast<const Number *>(gain);
  const Number *dy = static_cast<const Number *>(given);
  const float count = static_cast<float>(width);
  const float square = sum_over(x, width, [](Float value) { return Floats::times(value, value); });
  const float scale = 1.0f / std::sqrt(square / count + eps);
  Float sum = Floats::spread(0.0f);  // of g x
  for (int64_t i = 0; i < width; i += Floats::kWidth) {  // places beyond the row are zero
    const int64_t left = width - i;
    const Float gradient = Floats::times(load_some(dy + i, left), load_some(weight + i, left));
    sum = Floats::add_product(sum, gradient, load_some(x + i, left));
  }
  const Float back = Floats::spread(total_of(sum) * scale * scale / count), factor = Floats::spread(scale);
  for (int64_t i = 0; i < width; i += Floats::kWidth) {
    const int64_t left = width - i;
    const Float gradient = Floats::times(load_some(dy + i, left), load_some(weight + i, left));
    const Float rest = Floats::subtract(gradient, Floats::times(load_some(x + i, left), back));
    store_some(static_cast<Number *>(out) + i, Floats::times(rest, factor), left);
  }
}

// With s = sigmoid(gate):  dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s.
template <typename Number>
void swiglu_gradient(const void *gate, const void *up, const void *dy, int64_t width, void *dgate, void *dup) {
  const Float one = Floats::spread(1.0f);
  for (int64_t i = 0; i < width; i += Floats::kWidth) {
    const int64_t left = width - i;
    const Float g = load_some(static_cast<const Number *>(gate) + i, left);
    const Float u = load_some(static_cast<const Number *>(up) + i, left);
    const Float given = load_some(static_cast<const Number *>(dy) + i, left);
    const Float share = Floats::divide(one, Floats::add(one, exp_of(Floats::subtract(Floats::spread(0.0f), g))));
    const Float slope = Floats::add(one, Floats::times(g, Floats::subtract(one, share)));
    const Float passed = Floats::times(given, share);
    store_some(static_cast<Number *>(dgate) + i, Floats::times(Floats::times(passed, u), slope), left);
    store_some(static_cast<Number *>(dup) + i, Floats::times(passed, g), left);
  }
}

}  // namespace
