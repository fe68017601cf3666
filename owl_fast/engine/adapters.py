"""The adapters of an engine, by name, and the one its model carries at the moment."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from owl_fast.checkpoints import weights_sha256
from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.names import views
from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError
from owl_fast.hub import local_path
from owl_fast.lora import Adapter, attach_adapter_, lora_slots, read_adapter
from owl_fast.models.owl import Owl

BASE = "base"  # names the model without an adapter
DEFAULT = "default"


class Adapters:
    """Loading and naming are free at any time; `use` changes the model and belongs between two steps."""

    def __init__(self, model: Owl, source: WeightFolder | None) -> None:
        """source: where the model was read from, for adapters that say what they were trained on."""
        self._model = model
        self._source = source
        self._source_sha256: str | None = None
        self._slots, self._views = lora_slots(model), views(model)
        self._loaded: dict[str, Adapter] = {}
        self._carried: Adapter | None = None
        self._replaced: dict[str, Tensor] = {}  # the model's own tensors while an adapter's stand there
        self.default: Adapter | None = None  # for requests that name none

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    @property
    def nbytes(self) -> int:
        """Of all that are loaded, and of the model's tensors that wait for their return."""
        held = {id(adapter): adapter for adapter in (*self._loaded.values(), self._carried) if adapter}
        waiting = sum(tensor.nbytes for tensor in self._replaced.values())
        return sum(adapter.nbytes for adapter in held.values()) + waiting

    def load(self, name: str, folder: str | Path, check_base: bool = True) -> None:
        """Read an adapter under a new name. ParameterError for the name, CheckpointError for the folder."""
        if not isinstance(name, str) or not name or name == BASE:
            raise ParameterError(f"adapter name {name!r:.60}; wanted some text other than {BASE!r}")
        if name in self._loaded:
            raise ParameterError(f"an adapter {name!r:.60} is loaded already; unload it or take another name")
        folder = local_path(folder)
        adapter = read_adapter(empty_model(self._model.config), folder)
        if adapter.base is not None and check_base:
            self._check_base(folder, adapter)
        self._loaded[name] = adapter.to(self._model.device, self._model.dtype)

    def load_default(self, folder: str | Path | None) -> None:
        """The adapter, if there is one, of every request that names none."""
        if folder is not None:
            self.load(DEFAULT, folder)
            self.default = self._loaded[DEFAULT]

    def unload(self, name: str) -> None:
        """Forget an adapter; requests that already have it go on with it."""
        adapter = self.find(name)
        if adapter is None:
            raise ParameterError(f"{BASE!r} is the model itself and stays")
        del self._loaded[name]
        if adapter is self.default:
            self.default = None

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of a name; None stands for the default's. A result of None is the plain model."""
        if name is None:
            return self.default
        if name == BASE:
            return None
        if not isinstance(name, str) or name not in self._loaded:
            loaded = ", ".join(map(repr, self._loaded)) or "none"
            raise ParameterError(
                f"no adapter {name!r:.60} is loaded; loaded: {loaded}. engine.load_adapter(name, folder) "
                f"loads one, {BASE!r} is the model without"
            )
        return self._loaded[name]

    @torch.no_grad()
    def use(self, adapter: Adapter | None) -> bool:
        """Let the model carry this adapter and no other; without one it is bit for bit what was loaded.
        Returns whether anything had to change."""
        if adapter is self._carried:
            return False
        if self._carried is not None:
            for name in self._carried.pairs:
                self._slots[name].clear()
            for name, tensor in self._replaced.items():
                self._views[name].copy_(tensor)
            self._replaced, self._carried = {}, None
        if adapter is not None:
            self._replaced = {name: self._views[name].clone() for name in adapter.extra}
            self._carried = adapter
            attach_adapter_(self._slots, self._views, adapter)
        return True

    def check_precision(self, adapter: Adapter) -> None:
        """UnsupportedError if the adapter says that it was trained on weights held otherwise than these."""
        base = adapter.base
        if base is not None and base.quantization != self._held:
            trained, held = (
                f"as {name}" if name else "unquantized" for name in (base.quantization, self._held)
            )
            raise UnsupportedError(
                f"the adapter was trained on weights held {trained}, these are held {held}: merged they "
                "answer otherwise than in training. Load the model as it was there, or allow it with "
                "other_precision=True"
            )

    @property
    def is_unloaded(self) -> bool:
        """Whether the model still carries an adapter that is not loaded any more."""
        return self._carried is not None and self._carried not in self._loaded.values()

    def _check_base(self, folder: str | Path, adapter: Adapter) -> None:
        base = adapter.base
        assert base is not None
        rest = "load the adapter on that model, or by engine.load_adapter(name, folder, check_base=False)"
        if self._source is None:
            raise CheckpointError(
                f"{folder}: was trained on {base.name!r:.100}, and where this model comes from is not known; "
                f"make the engine with Engine.from_pretrained; {rest}"
            )
        if self._source_sha256 is None:
            self._source_sha256 = weights_sha256(self._source)
        held = self._model.config.quantization
        if base.sha256 not in (self._source_sha256, held.base_sha256 if held else None):
            raise CheckpointError(
                f"{folder}: was trained on {base.name!r:.100} with weights of sha256 {base.sha256:.12}..., "
                f"those of {self._source.path} have {self._source_sha256:.12}...; {rest}"
            )
        if base.quantization is not None and base.quantization != self._held:
            raise CheckpointError(
                f"{folder}: was trained on {base.name!r:.100} held as {base.quantization:.40}, this model is "
                f"{f'held as {self._held}' if self._held else 'not quantized'}; {rest}"
            )

    @property
    def _held(self) -> str | None:
        """How the model's weights are held, as adapters say it."""
        held = self._model.config.quantization
        return None if held is None else str(held)
