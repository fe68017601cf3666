"""What a model carries of its adapters: in the language model the updates of all of them side by side, told
apart row by row; everything else of one adapter at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.lora import Adapter, LoraSlot, attach_adapter_
from owl_fast.models.layers import Linear


class SideBySide:
    """Updates of any number of adapters, resident in linear layers; all of it between two steps."""

    def __init__(self, slots: Mapping[str, LoraSlot], dtype: torch.dtype) -> None:
        """slots: of the layers, whole. dtype: of the model."""
        self._dtype = dtype
        self._layers: dict[Linear, dict[str, LoraSlot]] = {}
        for name, slot in slots.items():
            self._layers.setdefault(slot.linear, {})[name] = slot
        self._names = set(slots)
        self._places: dict[Adapter, int] = {}

    @property
    def nbytes(self) -> int:
        stacks = [layer.stack for layer in self._layers if layer.stack is not None]
        return sum(tensor.nbytes for stack in stacks for tensor in stack[:3])

    def place(self, adapter: Adapter | None) -> int:
        """What a row that takes the adapter's updates says; -1 where it has none in these layers."""
        return -1 if adapter is None else self._places.get(adapter, -1)

    @torch.no_grad()
    def hold(self, adapters: Sequence[Adapter]) -> bool:
        """These and no others. Returns whether anything had to change; places are others then."""
        wanted = [adapter for adapter in adapters if not self._names.isdisjoint(adapter.pairs)]
        if self._places.keys() == set(wanted):
            return False
        self._drop()
        try:
            for layer, slots in self._layers.items():
                updates = [_updates(slots, adapter, layer.weight.device) for adapter in wanted]
                if any(updates):
                    layer.stack = ops.stack_adapters(updates, sum(layer.rows), self._dtype)
        except BaseException:
            self._drop()  # memory has run out, say: the next call begins anew
            raise
        self._places = {adapter: place for place, adapter in enumerate(wanted)}
        return True

    def _drop(self) -> None:
        self._places = {}
        for layer in self._layers:
            layer.stack = None


def _updates(slots: Mapping[str, LoraSlot], adapter: Adapter, device: torch.device) -> list[ops.LoraUpdate]:
    updates = []
    for name, slot in slots.items():
        if name in adapter.pairs:
            a, b = (half.to(device) for half in adapter.pairs[name])
            updates.append(ops.LoraUpdate(slot.start, slot.end, a, b, adapter.config.scale, 0.0))
    return updates


class StandIns:
    """Tensors of one adapter at a time in the place of the model's, and its updates in their slots."""

    def __init__(self, slots: Mapping[str, LoraSlot], tensors: Mapping[str, Tensor]) -> None:
        """What may be changed, by the checkpoint's names."""
        self._slots, self._tensors = slots, tensors
        self._replaced: dict[str, Tensor] = {}  # the model's own while an adapter's stand there
        self.carried: Adapter | None = None

    @property
    def nbytes(self) -> int:
        """Of the model's tensors that wait for their return."""
        return sum(tensor.nbytes for tensor in self._replaced.values())

    @property
    def updates(self) -> list[str]:
        """Names of the slots that hold updates now."""
        return [] if self.carried is None else [name for name in self.carried.pairs if name in self._slots]

    # Tensors of inference mode could neither be put back outside it nor tell their version.
    @torch.inference_mode(False)
    @torch.no_grad()
    def use(self, adapter: Adapter | None) -> None:
        """Carry what the adapter has for these places, and nothing of another; without one the model is bit
        for bit what was loaded."""
        if adapter is self.carried:
            return
        for name in self.updates:
            self._slots[name].clear()
        for name, tensor in self._replaced.items():
            self._tensors[name].copy_(tensor)
        self._replaced, self.carried = {}, None
        pairs, extra = ({}, {}) if adapter is None else self._part(adapter)
        if adapter is not None and (pairs or extra):
            self._replaced = {name: self._tensors[name].clone() for name in extra}
            self.carried = adapter
            attach_adapter_(self._slots, self._tensors, replace(adapter, pairs=pairs, extra=extra))

    def _part(self, adapter: Adapter) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        return (
            {name: pair for name, pair in adapter.pairs.items() if name in self._slots},
            {name: tensor for name, tensor in adapter.extra.items() if name in self._tensors},
        )
