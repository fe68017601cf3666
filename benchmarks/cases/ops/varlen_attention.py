"""Attention over whole sequences: four packed prompts of LLaMA-7B, and the pictures of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from benchmarks.timing import Run
from owl_fast import ops

BOUNDS = (0, 192, 640, 1280, 2048)
HEADS, WIDTH = 32, 128
VISION_ROWS, VISION_HEADS, VISION_WIDTH = 257, 16, 64


def make_packed(backward: bool, device: torch.device) -> Work:
    query, key, value = inputs((BOUNDS[-1], HEADS, WIDTH), backward, device)
    starts = torch.tensor(BOUNDS, dtype=torch.int32, device=device)
    lengths = [end - start for start, end in pairwise(BOUNDS)]

    def by_torch() -> Tensor:
        heads_first = (x.transpose(0, 1)[None] for x in (query, key, value))
        parts = zip(*(torch.split(x, lengths, dim=2) for x in heads_first), strict=True)
        done = [F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts]
        return torch.cat(done, dim=2)

    return work(
        lambda: ops.varlen_attention(query, key, value, BOUNDS, starts),
        by_torch,
        (query, key, value),
        backward,
        flops=sum(4 * HEADS * WIDTH * length * length // 2 for length in lengths),
    )


def make_dense(pictures: int, backward: bool, device: torch.device) -> Work:
    """query, key and value as the vision tower has them: views of one tensor (N, L, H, 3, D)."""
    shape = (pictures, VISION_ROWS, VISION_HEADS, 3, VISION_WIDTH)
    (fused,) = inputs(shape, backward, device, count=1)

    def by_torch() -> Tensor:
        q, k, v = fused.permute(3, 0, 2, 1, 4).unbind()
        return F.scaled_dot_product_attention(q, k, v)

    return work(
        lambda: ops.dense_attention(*fused.unbind(3)),
        by_torch,
        (fused,),
        backward,
        flops=4 * pictures * VISION_HEADS * VISION_WIDTH * VISION_ROWS**2,
    )


def inputs(shape: tuple[int, ...], backward: bool, device: torch.device, count: int = 3) -> list[Tensor]:
    return [
        torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=backward) for _ in range(count)
    ]


def work(ours: Run, by_torch: Run, leaves: Sequence[Tensor], backward: bool, flops: int) -> Work:
    """Backward does five products where forward does two, and reads and writes twice as much."""

    def with_gradient(attend: Run) -> Run:
        def run() -> object:
            y = attend()
            return torch.autograd.grad(y, leaves, torch.ones_like(y)) if backward else y

        return run

    nbytes = sum(x.nbytes for x in leaves) * 4 // 3
    return Work(
        run=with_gradient(ours),
        nbytes=(3 if backward else 1) * nbytes,
        flops=flops * 7 // 2 if backward else flops,
        peers={"torch scaled_dot_product_attention": with_gradient(by_torch)},
    )


PACKED = f"T{BOUNDS[-1]}-B{len(BOUNDS) - 1}-H{HEADS}-D{WIDTH}-bf16"
DENSE = f"L{VISION_ROWS}-H{VISION_HEADS}-D{VISION_WIDTH}-bf16"

CASES = (
    Case("varlen_attention", PACKED, partial(make_packed, False)),
    Case("varlen_attention forward + backward", PACKED, partial(make_packed, True)),
    *(Case("dense_attention", f"N{n}-{DENSE}", partial(make_dense, n, False)) for n in (1, 8)),
    Case("dense_attention forward + backward", f"N8-{DENSE}", partial(make_dense, 8, True)),
)
