// Everything of one instruction set, in one table.
#pragma once

#include "attention_tiles.h"
#include "cache_rows.h"
#include "dequantize_rows.h"
#include "elementwise_rows.h"
#include "gradient_rows.h"

namespace {

void exp_row(const float *x, float *y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    alignas(64) float part[kLanes] = {};
    const int64_t here = count - i < kLanes ? count - i : kLanes;
    std::memcpy(part, x + i, static_cast<size_t>(here) * sizeof(float));
    Floats::store(part, exp_of(Floats::load(part)));
    std::memcpy(y + i, part, static_cast<size_t>(here) * sizeof(float));
  }
}

// Half: how products of bf16 queries are made.
template <typename Half>
Vectors make_vectors(const char *name) {
  return {name,
          {rotate<float>, rotate<uint16_t>},
          {{keep<float, float>, keep<float, uint16_t>, keep<float, int8_t>},
           {keep<uint16_t, float>, keep<uint16_t, uint16_t>, keep<uint16_t, int8_t>}},
          {{attend<Single, float, float>, attend<Single, float, uint16_t>, attend<Single, float, int8_t>},
           {attend<Half, uint16_t, float>, attend<Half, uint16_t, uint16_t>, attend<Half, uint16_t, int8_t>}},
          {layer_norm<float>, layer_norm<uint16_t>},
          {swiglu<float>, swiglu<uint16_t>},
          {quick_gelu<float>, quick_gelu<uint16_t>},
          {rms_norm_gradient<float>, rms_norm_gradient<uint16_t>},
          {swiglu_gradient<float>, swiglu_gradient<uint16_t>},
          {expand_int8<float>, expand_int8<uint16_t>},
          {expand_int4<float>, expand_int4<uint16_t>},
          exp_row};
}

}  // namespace
