"""The abstractor's image keys and values of all layers by one linear layer, for inference on a GPU.

Every layer norms the same image features with a scale g and a shift h of its own and projects the result:
W (g * n + h) + b = (W * g) n + (b + W h), where n, the features with mean 0 and variance 1, is the same for
all layers. A second copy of these weights, folded and stacked, makes the norms one and the projections one.

N pictures, P image rows, E width, K layers, O output rows of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.models.layers import LayerNorm, Linear


def fold(norm: LayerNorm, linear: Linear) -> tuple[Tensor, Tensor]:
    """Weight (O, E) and bias (O,) in float32 that make of n what linear(norm) makes, updates included."""
    weight = linear.merged_weight()
    bias = weight @ norm.bias.detach().float()
    if linear.bias is not None:
        bias += linear.bias.detach().float()
    return weight * norm.weight.detach().float(), bias


class FoldedProjections:
    """The stacked copy for a list of norms and the linear layers behind them, made again when they changed.

    Before every use it looks whether a source is another tensor, in other memory or of another version than
    the one that was read: that sees in-place changes, loading, adapters and moves. Writing through
    Tensor.data is not seen, so nobody may. The copy is renewed in place and keeps its address while shape,
    dtype and device stay: a captured CUDA graph goes on with the new values if `refresh` runs before replay.
    """

    def __init__(self) -> None:
        self._read: list[_Source] = []
        self._numbers: list[object] = []
        self._weight = self._bias = self._ones = self._zeros = torch.empty(0)

    def __reduce__(self) -> tuple[type[FoldedProjections], tuple[()]]:
        return FoldedProjections, ()  # a copy of a model reads its own weights

    def __call__(
        self, norms: Sequence[LayerNorm], linears: Sequence[Linear], image: Tensor
    ) -> Sequence[Tensor]:
        """image (N, P, E) -> views (N, P, O), one for each layer."""
        self.refresh(norms, linears)
        normed = ops.layer_norm(image, self._ones, self._zeros, norms[0].eps)
        stacked = ops.lora_linear(normed, self._weight, self._bias)
        return stacked.chunk(len(linears), dim=-1)

    def refresh(self, norms: Sequence[LayerNorm], linears: Sequence[Linear]) -> None:
        """Make the copy again, unless it is up to date."""
        tensors: list[Tensor] = []
        numbers: list[object] = []
        for norm, linear in zip(norms, linears, strict=True):
            tensors += [norm.weight, norm.bias, *linear.parameters()]
            numbers += [
                norm.eps,
                *((part, linear.lora_rows[part], pair.scale) for part, pair in linear.updates()),
            ]
        if self._is_current(tensors, numbers):
            return
        # Tensors of inference mode could neither be renewed outside it nor tell their version.
        with torch.inference_mode(False), torch.no_grad():
            self._rebuild(norms, linears)
        self._read, self._numbers = [_Source.of(tensor) for tensor in tensors], numbers

    def _is_current(self, tensors: list[Tensor], numbers: list[object]) -> bool:
        return (
            len(tensors) == len(self._read)
            and numbers == self._numbers
            and all(source.is_unchanged(tensor) for source, tensor in zip(self._read, tensors, strict=True))
        )

    def _rebuild(self, norms: Sequence[LayerNorm], linears: Sequence[Linear]) -> None:
        assert len({norm.eps for norm in norms}) == 1, "one norm for all layers has one eps"
        pairs = [fold(norm, linear) for norm, linear in zip(norms, linears, strict=True)]
        dtype = norms[0].weight.dtype
        weight, bias = (torch.cat(parts).to(dtype) for parts in zip(*pairs, strict=True))
        if (weight.shape, weight.dtype, weight.device) != (
            self._weight.shape,
            self._weight.dtype,
            self._weight.device,
        ):
            self._weight, self._bias = torch.empty_like(weight), torch.empty_like(bias)
            self._ones, self._zeros = weight.new_ones(weight.shape[1]), weight.new_zeros(weight.shape[1])
        self._weight.copy_(weight)
        self._bias.copy_(bias)


class _Source(NamedTuple):
    """A tensor as it was read. Tensor and storage are held, so that no other can come to their place."""

    tensor: Tensor
    storage: torch.UntypedStorage
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Source:
        return cls(tensor, tensor.untyped_storage(), None if tensor.is_inference() else tensor._version)

    def is_unchanged(self, tensor: Tensor) -> bool:
        """False as well for tensors made in inference mode, which do not count their changes."""
        return (
            tensor is self.tensor
            and not tensor.is_inference()
            and tensor._version == self.version
            and tensor.untyped_storage().data_ptr() == self.storage.data_ptr()
        )
