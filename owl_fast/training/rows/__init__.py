"""Where the rows of a data file lie, one file per kind of container; nothing of them is kept in memory.

Opening one goes through the file once and notes a few numbers per row; rows[index] then reads that row alone.
"""

from __future__ import annotations

from owl_fast.training.rows.open import Rows, open_rows
from owl_fast.training.rows.row import Row

__all__ = ["Row", "Rows", "open_rows"]
