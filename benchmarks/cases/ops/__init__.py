"""Every operation at the shapes of the 7B model: one file per operation, each with its CASES."""

from __future__ import annotations

from benchmarks.cases.ops import linear_few_rows, rms_norm
from benchmarks.cases.ops.case import Case

CASES: tuple[Case, ...] = (*linear_few_rows.CASES, *rms_norm.CASES)
