"""How much a layer keeps for backward, and how much it computes again: gradients are the same bit for bit.

| level | kept for backward | computed again |
|---|---|---|
| whole | whatever the layer's operations keep | nothing |
| products | the layer's input, results of products and of attention | norms, activations, rotation |
| attention | the layer's input, results of attention | the rest |
| input | the layer's input | everything |

With frozen weights an operation keeps little besides the products' results, so that "products" saves next to
nothing there; in a layer that trains it saves the inputs of the products.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from owl_fast import ops

Level = Literal["whole", "products", "attention", "input"]
LEVELS: tuple[Level, ...] = get_args(Level)
_KINDS: dict[Level, tuple[ops.Kind, ...]] = {
    "products": ("linear", "attention"),
    "attention": ("attention",),
    "input": (),
}


class Layer(nn.Module):
    """One of a stack of equal layers."""

    level: Level = "whole"


def run(layer: nn.Module, *args: Any) -> Tensor:
    """layer(*args), of a Layer; where gradients are recorded it keeps what its level says."""
    assert isinstance(layer, Layer)
    if layer.level == "whole" or not torch.is_grad_enabled():
        return layer(*args)
    kinds = _KINDS[layer.level]

    result: Tensor = checkpoint(
        layer, *args, use_reentrant=False, context_fn=lambda: ops.Kept(kinds).passes()
    )
    return result
