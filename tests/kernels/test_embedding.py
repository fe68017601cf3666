"""Rows of a table by number."""

from __future__ import annotations

import re

import pytest
import torch

from owl_fast.kernels.embedding import embedding_reference, embedding_triton
from tests.kernels.tensors import DTYPES, random


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [1, 61, 1024, 1025], ids=lambda width: f"C{width}")
@pytest.mark.parametrize("rows", [0, 1, 5], ids=lambda rows: f"N{rows}")
@pytest.mark.usefixtures("poisoned")
def test_rows_are_those_of_the_table(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> None:
    table = random(7, width, dtype=dtype, device=device)
    ids = torch.tensor([6, 0, 3, 3, 1][:rows], dtype=torch.int64, device=device)
    assert torch.equal(embedding_triton(ids, table), embedding_reference(ids, table))


def test_a_number_outside_the_table_reads_nothing(device: torch.device) -> None:
    table = random(7, 5, device=device)
    ids = torch.tensor([-1, 7, 1 << 40], device=device)
    assert torch.equal(embedding_triton(ids, table), torch.zeros(3, 5, device=device))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    ids, table = torch.zeros(3, dtype=torch.int64, device=device), random(4, 6, device=device)
    for bad_ids, bad_table, words in (
        (ids.int(), table, "int32 (3,)"),
        (ids[None], table, "int64 (1, 3)"),
        (ids, table[:, ::2], "float32 (4, 3) with strides (6, 2)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            embedding_triton(bad_ids, bad_table)
