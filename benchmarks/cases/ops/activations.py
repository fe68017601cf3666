"""QuickGELU of ViT-L/14 (4096 channels) and SwiGLU of LLaMA-7B (11008) and of the abstractor (2816)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops


def make(
    run: Callable[[Tensor], Tensor],
    peer: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
    out: int,
    backward: bool,
    device: torch.device,
) -> Work:
    x = torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=backward)
    dy = torch.randn(shape[0], out, dtype=torch.bfloat16, device=device)

    def with_gradient(y: Tensor) -> object:
        return torch.autograd.grad(y, x, dy) if backward else y

    return Work(
        run=lambda: with_gradient(run(x)),
        nbytes=(3 * x.nbytes + 2 * dy.nbytes) if backward else x.nbytes + dy.nbytes,
        peers={"torch": lambda: with_gradient(peer(x))},
    )


def plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def plain_quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def swiglu(rows: int, width: int, backward: bool, device: torch.device) -> Work:
    return make(ops.swiglu, plain_swiglu, (rows, 2 * width), width, backward, device)


def quick_gelu(rows: int, width: int, backward: bool, device: torch.device) -> Work:
    return make(ops.quick_gelu, plain_quick_gelu, (rows, width), width, backward, device)


def quick_gelu_bias(rows: int, width: int, device: torch.device) -> Work:
    bias = torch.randn(width, dtype=torch.bfloat16, device=device, requires_grad=True)
    return make(
        lambda x: ops.quick_gelu(x, bias),
        lambda x: plain_quick_gelu(x + bias),
        (rows, width),
        width,
        True,
        device,
    )


CASES = (
    Case("quick_gelu", "N257-F4096-bf16", partial(quick_gelu, 257, 4096, False)),
    Case("quick_gelu forward + backward", "N4112-F4096-bf16", partial(quick_gelu, 4112, 4096, True)),
    Case("quick_gelu, bias forward + backward", "N4112-F4096-bf16", partial(quick_gelu_bias, 4112, 4096)),
    Case("swiglu", "N1-F11008-bf16", partial(swiglu, 1, 11008, False)),
    Case("swiglu", "N2048-F11008-bf16", partial(swiglu, 2048, 11008, False)),
    Case("swiglu", "N64-F2816-bf16", partial(swiglu, 64, 2816, False)),
    Case("swiglu forward + backward", "N2048-F11008-bf16", partial(swiglu, 2048, 11008, True)),
)
