// What this machine can run: owl_linear_paths() names the paths, best first.
#pragma once

#include "dense_layout.h"
#include "quantized_layout.h"

struct Path {
  const char *name;
  const QuantizedKernels *quantized;
  const DenseKernels *dense_f32, *dense_bf16;  // by the type of the weight
};

const Path &path_at(int32_t place);
