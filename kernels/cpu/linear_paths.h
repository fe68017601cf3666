// Linear layers, once for every instruction set: what one of owl_linear_paths() is made of.
#pragma once

#include "dense_layout.h"
#include "quantized_layout.h"

struct LinearPath {
  const char *name;
  const QuantizedKernels *quantized;
  const DenseKernels *dense_f32, *dense_bf16;  // by the type of the weight
};

const LinearPath &linear_path(int32_t path);  // a place in owl_linear_paths()
