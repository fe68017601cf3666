"""The adapters of an engine, by name, and on their way into its model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from owl_fast.checkpoints import weights_sha256
from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.names import views
from owl_fast.engine.carried import SideBySide, StandIns
from owl_fast.engine.onnx_vision import onnx_tower
from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError
from owl_fast.hub import local_path
from owl_fast.lora import LANGUAGE_MODEL, Adapter, lora_slots, read_adapter
from owl_fast.models.owl import Owl

BASE = "base"  # names the model without an adapter
DEFAULT = "default"
T = TypeVar("T")


class Adapters:
    """Reading and naming are free at any time; `hold`, and use of the stand-ins, change the model and belong
    between two steps.

    updates: of the language model, for every row those of its own adapter. inside: tensors of the language
    model, for all rows. outside: whatever makes rows of pictures.
    """

    def __init__(self, model: Owl, source: WeightFolder | None) -> None:
        """source: where the model was read from, for adapters that say what they were trained on."""
        self._model = model
        self._source = source
        self._source_sha256: str | None = None
        self._loaded: dict[str, Adapter] = {}
        self._ready: list[Adapter] = []
        inner_slots, outer_slots = _by_side(lora_slots(model))
        inner, outer = _by_side(views(model))
        self._slots = inner_slots
        self.updates = SideBySide(inner_slots, model.dtype)
        self.inside, self.outside = StandIns({}, inner), StandIns(outer_slots, outer)
        self.default: Adapter | None = None  # for requests that name none

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    @property
    def nbytes(self) -> int:
        """On the model's device: of all that are loaded or in use, as read and as the model carries them."""
        adapters = dict.fromkeys((*self._loaded.values(), *self._ready))
        read = [tensor for adapter in adapters for tensor in adapter.tensors]
        there = sum(tensor.nbytes for tensor in read if tensor.device == self._model.device)
        return there + self.updates.nbytes + self.inside.nbytes + self.outside.nbytes

    def read(self, folder: str | Path, check_base: bool = True) -> Adapter:
        """From a folder or the hub, on the model's device; CheckpointError if it does not fit the model."""
        folder = local_path(folder)
        adapter = read_adapter(empty_model(self._model.config), folder)
        if (tower := onnx_tower(self._model)) is not None:
            tower.check_adapter(folder, adapter)
        if adapter.base is not None and check_base:
            self._check_base(folder, adapter)
        for part in adapter.pairs:
            if part in self._slots and self._slots[part].linear.lora:
                raise UnsupportedError(f"{part} already carries a LoRA update; merge or detach it first")
        return adapter.to(self._model.device, self._model.dtype)

    def check_name(self, name: object) -> None:
        """ParameterError unless an adapter can be loaded under it."""
        if not isinstance(name, str) or not name or name == BASE:
            raise ParameterError(f"adapter name {name!r:.60}; wanted some text other than {BASE!r}")
        if name in self._loaded:
            raise ParameterError(f"an adapter {name!r:.60} is loaded already; unload it or take another name")

    def add(self, name: str, adapter: Adapter) -> None:
        """It can be used once it is held."""
        self.check_name(name)
        self._loaded[name] = adapter

    def load_default(self, folder: str | Path | None) -> None:
        """The adapter, if there is one, of every request that names none."""
        if folder is not None:
            self.default = self.read(folder)
            self.add(DEFAULT, self.default)

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

    def hold(self, used: Iterable[Adapter | None]) -> bool:
        """Have ready what is loaded and what requests use, and let go of the rest. Returns whether updates
        have moved."""
        ready = list(dict.fromkeys((*self._loaded.values(), *filter(None, used))))
        if self.inside.carried not in ready:
            self.inside.use(None)
        moved = self.updates.hold(ready)
        self._ready = ready
        return moved

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

    def _check_base(self, folder: str | Path, adapter: Adapter) -> None:
        base = adapter.base
        assert base is not None
        rest = "load the adapter on that model"
        if self._source is None:
            raise CheckpointError(
                f"{folder}: was trained on {base.name!r:.100}, and where this model comes from is not known; "
                f"make the engine with Engine.from_pretrained; {rest}"
            )
        if self._source_sha256 is None:
            self._source_sha256 = weights_sha256(self._source)
        held = self._model.config.quantization
        if not base.is_of(self._source_sha256, held):
            raise CheckpointError(
                f"{folder}: was trained on {base.name!r:.100} with weights of sha256 {base.sha256:.12}..., "
                f"those of {self._source.path} have {self._source_sha256:.12}...; {rest}"
            )
        if base.quantization is not None and base.quantization != self._held:
            raise CheckpointError(
                f"{folder}: was trained on {base.name!r:.100} held as {base.quantization:.40}, this model is "
                f"{f'held as {self._held}' if self._held else 'not quantized'}; load it as it was then "
                "(quant=, on the command line --quant), or merge the adapter (owl-fast export.merged)"
            )

    @property
    def _held(self) -> str | None:
        """How the model's weights are held, as adapters say it."""
        held = self._model.config.quantization
        return None if held is None else str(held)


def _by_side(named: dict[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """Those of the language model, and the others."""
    inner = {name: value for name, value in named.items() if name.startswith(LANGUAGE_MODEL)}
    return inner, {name: value for name, value in named.items() if name not in inner}
