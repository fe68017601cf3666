"""Every operation at the shapes of the 7B model: one file per operation, each with its CASES."""

from __future__ import annotations

from benchmarks.cases.ops import cross_attention, embedding, rms_norm, varlen_attention
from benchmarks.cases.ops.case import Case

CASES: tuple[Case, ...] = (
    *rms_norm.CASES,
    *embedding.CASES,
    *cross_attention.CASES,
    *varlen_attention.CASES,
)
