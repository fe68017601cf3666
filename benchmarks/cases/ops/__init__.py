"""Every operation at the shapes of the 7B model: one file per operation, each with its CASES."""

from __future__ import annotations

from benchmarks.cases.ops import (
    activations,
    cross_attention,
    dense_linear,
    embedding,
    layer_norm,
    linear_cross_entropy,
    linear_few_rows,
    lora_linear,
    paged_attention,
    quantized_linear,
    rms_norm,
    rotary,
    sampling,
    varlen_attention,
)
from benchmarks.cases.ops.case import Case

CASES: tuple[Case, ...] = (
    *activations.CASES,
    *cross_attention.CASES,
    *embedding.CASES,
    *layer_norm.CASES,
    *linear_cross_entropy.CASES,
    *linear_few_rows.CASES,
    *lora_linear.CASES,
    *paged_attention.CASES,
    *rms_norm.CASES,
    *rotary.CASES,
    *sampling.CASES,
    *varlen_attention.CASES,
)

# What only a CPU runs, at full size: what libowl_cpu alone has, or has to be measured in another way.
CPU_CASES: tuple[Case, ...] = (*quantized_linear.CASES, *dense_linear.CASES, *paged_attention.CPU_CASES)
