"""The few layers the three models share. Forward passes call ops, which choose the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from owl_fast import ops


class LoraPair(nn.Module):
    """One low-rank update of one part of a linear layer: A (r, in), B (rows, r)."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout = scale, dropout


class PackedWeight(nn.Module):
    """A quantized weight (N, K) in a linear slot: the buffers q and scale, as kernels/weights.py has them,
    or, once laid out, the buffer `tiles` in their place.

    Moves between devices and keeps its dtypes, whatever the model's becomes. It does not train.
    """

    q: Tensor
    scale: Tensor
    tiles: Tensor

    def __init__(self, weight: ops.Int8Weight | ops.Int4Weight) -> None:
        super().__init__()
        self.register_buffer("q", weight.q)
        self.register_buffer("scale", weight.scale)
        self.shape = weight.shape
        self.group = weight.group if isinstance(weight, ops.Int4Weight) else None
        self._narrow = False  # of the tiles: see ops.TiledWeight

    @property
    def value(self) -> ops.Int8Weight | ops.Int4Weight | ops.TiledWeight:
        if self.laid_out:
            return ops.TiledWeight(self.tiles, *self.shape, self.group or 0, self._narrow)
        if self.group is None:
            return ops.Int8Weight(self.q, self.scale)
        return ops.Int4Weight(self.q, self.scale, self.shape[1], self.group)

    @property
    def canonical(self) -> ops.Int8Weight | ops.Int4Weight:
        """q and scale; a copy where the weight is laid out."""
        return ops.canonical(self.value)

    @property
    def laid_out(self) -> bool:
        return "tiles" in self._buffers

    def lay_out(self) -> None:
        """Keep the weight as the kernels of this machine read it, where they have a layout of their own."""
        if not self.laid_out and (tiled := ops.tiled(self.canonical)) is not None:
            del self.q, self.scale
            self.register_buffer("tiles", tiled.data)
            self._narrow = tiled.narrow

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        for name, tensor in list(self.named_buffers()):
            moved = fn(tensor)
            setattr(self, name, moved if moved.dtype == tensor.dtype else tensor.to(moved.device))
        return self


class Linear(nn.Module):
    """The linear slot: a weight of one or several stacked parts, dense or quantized, with LoRA on any part.

    rows: output rows, or one number per stacked part (see models/fusion.py).
    lora: low-rank updates by the checkpoint's name of the part; empty without an adapter. stack: updates of
    several adapters for rows that say whose they take; those rows take nothing from lora.
    """

    def __init__(self, in_features: int, rows: int | tuple[int, ...], bias: bool = True) -> None:
        super().__init__()
        self.rows = (rows,) if isinstance(rows, int) else rows
        self.weight: nn.Parameter | PackedWeight = nn.Parameter(torch.empty(sum(self.rows), in_features))
        self.bias = nn.Parameter(torch.empty(sum(self.rows))) if bias else None
        self.lora = nn.ModuleDict()
        self.lora_rows: dict[str, tuple[int, int]] = {}
        self.stack: ops.StackedLora | None = None

    @property
    def operand(self) -> ops.Weight | ops.TiledWeight:
        """The weight as operations take it."""
        return self.weight.value if isinstance(self.weight, PackedWeight) else self.weight

    def put(self, weight: ops.Weight) -> None:
        """Another weight of the same shape, dense or quantized, in the place of the one that is there."""
        assert weight.shape == self.weight.shape
        del self.weight  # a module refuses to put one kind where the other is
        if isinstance(weight, Tensor):
            self.weight = nn.Parameter(weight)
        else:
            self.weight = PackedWeight(weight)

    def forward(
        self,
        x: Tensor,
        *,
        norm: RMSNorm | None = None,
        activation: ops.Activation | None = None,
        residual: Tensor | None = None,
        owner: Tensor | None = None,
    ) -> Tensor:
        """residual + activation(linear(norm(x))), as far as each is given: see ops.lora_linear.

        owner (rows of x,) int32: whose updates in `stack` a row takes, -1 for nobody's.
        """
        before = None if norm is None else (norm.weight, norm.eps)
        lora: tuple[ops.LoraUpdate, ...] | ops.StackedLora = ()
        if owner is not None and self.stack is not None:
            lora = self.stack._replace(owner=owner)
        elif self.lora:
            lora = tuple(self._lora_updates())
        return ops.lora_linear(
            x, self.operand, self.bias, lora, norm=before, activation=activation, residual=residual
        )

    def updates(self) -> Iterator[tuple[str, LoraPair]]:
        """The checkpoint's name of a part, and its update."""
        for name, pair in self.lora.items():
            assert isinstance(pair, LoraPair)
            yield name, pair

    def merged_weight(self) -> Tensor:
        """A copy of the weight in float32 with every update added."""
        if isinstance(self.weight, PackedWeight):
            weight = ops.dequantize(self.weight.canonical, torch.float32)
        else:
            weight = self.weight.detach().to(torch.float32, copy=True)
        for name, pair in self.updates():
            start, end = self.lora_rows[name]
            weight[start:end] += pair.scale * (pair.lora_B.detach().float() @ pair.lora_A.detach().float())
        return weight

    def _lora_updates(self) -> Iterator[ops.LoraUpdate]:
        for name, pair in self.updates():
            start, end = self.lora_rows[name]
            dropout = pair.dropout if self.training else 0.0
            yield ops.LoraUpdate(start, end, pair.lora_A, pair.lora_B, pair.scale, dropout)


class LayerNorm(nn.Module):
    """Layer norm computed in float32, whatever the model's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm of LLaMA: float32 statistics, result in the model's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


def init_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Fill a model that is to be trained from nothing: N(0, std) weights, unit norms, zero biases."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    norms = {id(m.weight) for m in model.modules() if isinstance(m, (LayerNorm, RMSNorm))}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in norms:
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device) * std)
