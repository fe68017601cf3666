"""Every operation at the shapes of the 7B model: one file per operation, each with its CASES."""

from __future__ import annotations

from benchmarks.cases.ops import (
    activations,
    cross_attention,
    embedding,
    layer_norm,
    linear_cross_entropy,
    rms_norm,
    sampling,
    varlen_attention,
)
from benchmarks.cases.ops.case import Case

CASES: tuple[Case, ...] = (
    *rms_norm.CASES,
    *embedding.CASES,
    *layer_norm.CASES,
    *activations.CASES,
    *linear_cross_entropy.CASES,
    *sampling.CASES,
    *cross_attention.CASES,
    *varlen_attention.CASES,
)
