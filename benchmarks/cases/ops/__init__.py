"""Every operation at the shapes of the 7B model: one file per operation, each with its CASES."""

from __future__ import annotations

from benchmarks.cases.ops import embedding, lora_linear, rms_norm
from benchmarks.cases.ops.case import Case

CASES: tuple[Case, ...] = (*embedding.CASES, *lora_linear.CASES, *rms_norm.CASES)
