"""Every operation at the shapes of the 7B model: one file per operation, each with its CASES."""

from __future__ import annotations

from benchmarks.cases.ops import embedding, paged_attention, rms_norm, rotary
from benchmarks.cases.ops.case import Case

CASES: tuple[Case, ...] = (
    *embedding.CASES,
    *paged_attention.CASES,
    *rms_norm.CASES,
    *rotary.CASES,
)
