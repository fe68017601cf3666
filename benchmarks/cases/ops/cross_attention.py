"""Cross-attention of the abstractor: 64 queries over themselves and 257 image rows."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops

QUERIES, ROWS, HEADS, WIDTH = 64, 257, 16, 64


def make(pictures: int, backward: bool, dropout: float, device: torch.device) -> Work:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=backward)

    query, query_kv = random(pictures, QUERIES, HEADS, WIDTH), random(pictures, QUERIES, 2, HEADS, WIDTH)
    image_kv = random(pictures, ROWS, 2, HEADS, WIDTH)
    given = torch.randn(query.shape, dtype=query.dtype, device=device)

    def with_gradient(y: Tensor) -> object:
        return torch.autograd.grad(y, (query, query_kv, image_kv), given) if backward else y

    def by_torch() -> Tensor:
        key, value = torch.cat((query_kv, image_kv), dim=1).unbind(2)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)

    return Work(
        run=lambda: with_gradient(ops.cross_attention(query, query_kv, image_kv, dropout)),
        nbytes=(3 if backward else 1) * (2 * query.nbytes + query_kv.nbytes + image_kv.nbytes),
        flops=(14 if backward else 4) * pictures * HEADS * QUERIES * (QUERIES + ROWS) * WIDTH,
        peers={"torch scaled_dot_product_attention": lambda: with_gradient(by_torch())},
    )


def shape(pictures: int) -> str:
    return f"N{pictures}-Q{QUERIES}-P{ROWS}-H{HEADS}-D{WIDTH}-bf16"


CASES = (
    *(Case("cross_attention", shape(n), partial(make, n, False, 0.0)) for n in (1, 8)),
    *(Case("cross_attention forward + backward", shape(n), partial(make, n, True, 0.0)) for n in (1, 8)),
    Case("cross_attention forward + backward, dropout", shape(8), partial(make, 8, True, 0.1)),
)
