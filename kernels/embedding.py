"""Rows of a table by number: y[n] = table[ids[n]]. Without gradients: training takes torch's.

Shapes: ids (N,) int64, table (V, C) -> (N, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.cpu_calls import call
from owl_fast.kernels.launch import check, jit, launch, tl

BLOCK = 1024  # columns of one program: 128 threads with 16 bytes each, of a 16-bit table


def embedding_reference(ids: Tensor, table: Tensor, padding: int | None = None) -> Tensor:
    """padding: the row that gets no gradient."""
    return F.embedding(ids, table, padding_idx=padding)


def embedding_cpu(ids: Tensor, table: Tensor) -> Tensor:
    """As embedding_reference on a CPU, without gradients; part of a step that can be repeated."""
    y = table.new_empty(len(ids), table.shape[1])
    call(_take, None, ids, table, y, keep=None)
    return y


def _take(pool: int | None, ids: Tensor, table: Tensor, y: Tensor) -> None:
    torch.index_select(table, 0, ids, out=y)


@jit
def _embedding_kernel(ids, table, y, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One part of a row per program; a number outside the table gives zeros."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(ids + row)
    width = tl.where((number >= 0) & (number < rows), WIDTH, 0)
    values = tl.load(table + number * WIDTH + cols, mask=cols < width, other=0.0)
    tl.store(y + row * WIDTH + cols, values, mask=cols < WIDTH)


def embedding_triton(ids: Tensor, table: Tensor) -> Tensor:
    """As embedding_reference on a GPU, without gradients."""
    check(ids.dim() == 1 and ids.dtype == torch.int64 and ids.is_contiguous(), ids, "contiguous int64 (N,)")
    check(table.dim() == 2 and table.is_contiguous(), table, "a contiguous (V, C)")
    check(ids.device == table.device, ids, f"numbers on {table.device}")
    y = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=table.device)
    grid = len(ids), -(-table.shape[1] // BLOCK)
    launch(_embedding_kernel, grid, ids, table, y, len(table), WIDTH=table.shape[1], BLOCK=BLOCK, num_warps=4)
    return y
