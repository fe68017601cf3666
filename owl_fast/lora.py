"""LoRA adapters (arXiv 2106.09685): attach, merge, and PEFT's files.

An adapter folder holds adapter_config.json and adapter_model.safetensors (or .bin) as PEFT writes them, and,
when more than the low-rank updates was trained (stage 2 trains the abstractor), non_lora.safetensors with
those tensors under the checkpoint's names. base.json, if there, tells the weights it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from owl_fast.checkpoints.folder import check_link
from owl_fast.checkpoints.manifest import Manifest
from owl_fast.checkpoints.names import PACKED, views
from owl_fast.checkpoints.peft import CONFIG_FILE, PREFIX
from owl_fast.checkpoints.peft import LoraConfig as LoraConfig
from owl_fast.checkpoints.tensorfile import check_values, read_tensors, write_tensors
from owl_fast.checkpoints.writer import whole_folder
from owl_fast.config import Quantization
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.files import is_there, read_json, write_json
from owl_fast.models.fusion import module_sources
from owl_fast.models.layers import Linear, LoraPair

LANGUAGE_MODEL = "language_model."
EXTRA_FILE, BASE_FILE = "non_lora.safetensors", "base.json"
WEIGHT_FILES = {"safetensors": "adapter_model.safetensors", "bin": "adapter_model.bin"}


@dataclass(frozen=True)
class Base:
    """The model an adapter was trained on.

    sha256: of its weights (checkpoints.weights_sha256). quantization: the scheme they were held in while the
    adapter was trained, None for none.
    """

    name: str
    sha256: str
    quantization: str | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> Base:
        raw = read_json(path)
        name, sha256, quantization = raw.get("name"), raw.get("sha256"), raw.get("quantization")
        if (
            not isinstance(name, str)
            or not isinstance(sha256, str)
            or not isinstance(quantization, str | None)
        ):
            raise CheckpointError(f"{path}: wanted the strings name, sha256 and quantization (or null)")
        return cls(name, sha256, quantization)

    def is_of(self, sha256: str, held: Quantization | None) -> bool:
        """Whether weights of this sha256, held so, are its own, or were made of them."""
        return self.sha256 in (sha256, held.base_sha256 if held else None)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter folder holds, checked against a model.

    pairs: the checkpoint's module name -> A (r, in), B (rows, r). extra: tensors that replace the model's.
    """

    config: LoraConfig
    pairs: dict[str, tuple[Tensor, Tensor]]
    extra: dict[str, Tensor]
    base: Base | None = None

    @cached_property
    def runs_alone(self) -> bool:
        """Whether tensors of the language model are replaced, which all rows of a batch share."""
        return any(name.startswith(LANGUAGE_MODEL) for name in self.extra)

    def to(self, device: torch.device, dtype: torch.dtype) -> Adapter:
        """The extra tensors as a model of this device and dtype takes them; updates stay as they are."""
        return replace(self, extra={name: tensor.to(device, dtype) for name, tensor in self.extra.items()})

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """What merging makes of the model's tensor of this name (the checkpoint's)."""
        if name in self.extra:
            return self.extra[name]
        pair = self.pairs.get(name.removesuffix(".weight"))
        return tensor if pair is None else _merged(tensor, *pair, self.config.scale)

    @cached_property
    def sha256(self) -> str:
        """Of all that it changes a model by."""
        digest = sha256(f"{self.config.scale!r}".encode())
        named = {f"{n}.{part}": t for n, ab in self.pairs.items() for part, t in zip("AB", ab, strict=True)}
        for name, tensor in sorted((named | self.extra).items()):
            digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def tensors(self) -> list[Tensor]:
        return [*(half for pair in self.pairs.values() for half in pair), *self.extra.values()]


class LoraSlot(NamedTuple):
    """A place an update can go: output rows [start, end) of a linear layer, by the checkpoint's part name."""

    linear: Linear
    part: str
    start: int
    end: int

    @property
    def pair(self) -> LoraPair | None:
        pair = self.linear.lora[self.part] if self.part in self.linear.lora else None  # noqa: SIM401
        return pair if isinstance(pair, LoraPair) else None

    def put(self, a: Tensor, b: Tensor, config: LoraConfig) -> None:
        if self.pair is not None:
            raise UnsupportedError(f"{self.part} already carries a LoRA update; merge or detach it first")
        # Updates stay in float32 whatever the model's dtype: small, and training needs the precision.
        a, b = (x.to(self.linear.weight.device, torch.float32) for x in (a, b))
        self.linear.lora[self.part] = LoraPair(a, b, config.scale, config.dropout)
        self.linear.lora_rows[self.part] = (self.start, self.end)

    def clear(self) -> None:
        if self.pair is not None:
            del self.linear.lora[self.part], self.linear.lora_rows[self.part]


def lora_slots(model: nn.Module) -> dict[str, LoraSlot]:
    """Every slot of the model by the checkpoint's module name."""
    slots = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            start = 0
            for source, rows in zip(module_sources(name), module.rows, strict=True):
                slots[source] = LoraSlot(module, source.rpartition(".")[2], start, start + rows)
                start += rows
    return slots


def attach(model: nn.Module, config: LoraConfig, seed: int = 0) -> list[str]:
    """Put fresh updates on every targeted module (A Kaiming-uniform, B zero) and return their names.

    UnsupportedError if nothing matches or a target already carries an update.
    """
    slots = {name: slot for name, slot in lora_slots(model).items() if config.targets(name)}
    if not slots:
        raise UnsupportedError(
            f"target_modules {config.target_modules!r} matches no linear layer of the model"
        )
    generator = torch.Generator().manual_seed(seed)
    for slot in slots.values():
        width = slot.linear.weight.shape[1]
        bound = 1 / math.sqrt(width)  # Kaiming-uniform with a = sqrt(5)
        a = torch.empty(config.r, width).uniform_(-bound, bound, generator=generator)
        slot.put(a, torch.zeros(slot.end - slot.start, config.r), config)
    return list(slots)


@torch.no_grad()
def merge_(model: nn.Module) -> None:
    """Add every update to its weight (W += scale * B A, summed in float32) and remove the updates."""
    for slot in lora_slots(model).values():
        if slot.pair is not None:
            if not isinstance(slot.linear.weight, Tensor):
                raise UnsupportedError(
                    f"{slot.part} is quantized, and rounding would lose most of its update; "
                    "make the model dense first (quantization.whole.dequantize_)"
                )
            rows = slot.linear.weight[slot.start : slot.end]
            rows.copy_(_merged(rows, slot.pair.lora_A, slot.pair.lora_B, slot.pair.scale))
    detach_(model)


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    a, b = (half.to(weight.device, torch.float32) for half in (a, b))
    return (weight.float() + b @ a * scale).to(weight.dtype)


def detach_(model: nn.Module) -> None:
    """Remove every update, leaving the weights as they are."""
    for slot in lora_slots(model).values():
        slot.clear()


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    config: LoraConfig,
    *,
    base: str | Base,
    extra: Iterable[str] = (),
    format: str = "safetensors",
) -> None:
    """Write the model's updates as PEFT does, in a new folder, whole or not at all.

    base: the model they belong to, by name, or as a Base that is checked when the adapter is loaded. extra:
    checkpoint tensors trained beside them. format: "safetensors" or "bin", of the updates' file.
    """
    if format not in WEIGHT_FILES:
        raise UnsupportedError(f"format {format!r}: wanted one of {', '.join(WEIGHT_FILES)}")
    tensors = {
        f"{PREFIX}{name}.{half}.weight": getattr(slot.pair, half).detach().cpu().contiguous()
        for name, slot in lora_slots(model).items()
        if slot.pair is not None
        for half in ("lora_A", "lora_B")
    }
    model_views = views(model)
    others = {name: _pick(model_views, name) for name in extra}
    with whole_folder(Path(folder)) as staging:
        write_json(staging / CONFIG_FILE, config.to_dict(base if isinstance(base, str) else base.name))
        write_tensors(staging / WEIGHT_FILES[format], tensors)
        if others:
            write_tensors(staging / EXTRA_FILE, others)
        if isinstance(base, Base):
            write_json(staging / BASE_FILE, asdict(base))


def load_adapter(model: nn.Module, folder: str | Path) -> LoraConfig:
    """Read the adapter in `folder` and attach it; see read_adapter."""
    adapter = read_adapter(model, folder)
    attach_adapter_(lora_slots(model), views(model), adapter)
    return adapter.config


def read_adapter(model: nn.Module, folder: str | Path) -> Adapter:
    """The adapter in `folder`; strict: every file tensor fits a slot, every targeted slot gets both halves.

    model: the one it is for, or any of its shape (also on the meta device); it stays as it is.
    CheckpointError names file and tensor.
    """
    folder = Path(folder)
    if (manifest := Manifest.read(folder)) is not None:
        manifest.check()
    config = LoraConfig.from_file(folder / CONFIG_FILE)
    present = [folder / file for file in WEIGHT_FILES.values() if is_there(folder / file)]
    if len(present) != 1:
        wanted = " or ".join(WEIGHT_FILES.values())
        raise CheckpointError(f"{folder}: wanted one of {wanted}, found {len(present)} of them")
    path = present[0]
    check_link(folder, path)
    tensors = read_tensors(path)
    pairs = {
        name: (
            _take(tensors, path, name, "lora_A", (config.r, slot.linear.weight.shape[1])),
            _take(tensors, path, name, "lora_B", (slot.end - slot.start, config.r)),
        )
        for name, slot in lora_slots(model).items()
        if config.targets(name)
    }
    if tensors or not pairs:
        what = f"tensor {sorted(tensors)[0]} fits no" if tensors else "there is no"
        raise CheckpointError(f"{path}: {what} module matching {config.target_modules!r}")
    check_link(folder, folder / EXTRA_FILE)
    extra = _read_extra(model, folder / EXTRA_FILE) if is_there(folder / EXTRA_FILE) else {}
    base = read_base(folder)
    return Adapter(config, pairs, extra, base)


@torch.no_grad()
def attach_adapter_(
    slots: Mapping[str, LoraSlot], model_views: Mapping[str, Tensor], adapter: Adapter
) -> None:
    """Put the updates into their slots and the extra tensors in the place of the model's."""
    for name, (a, b) in adapter.pairs.items():
        slots[name].put(a, b, adapter.config)
    for name, tensor in adapter.extra.items():
        model_views[name].copy_(tensor)


def _take(tensors: dict[str, Tensor], path: Path, module: str, half: str, shape: tuple[int, int]) -> Tensor:
    """PEFT 0.3 and later spell the key without the adapter's name; full state dicts carry `.default`."""
    for key in (f"{PREFIX}{module}.{half}.weight", f"{PREFIX}{module}.{half}.default.weight"):
        if key in tensors:
            tensor = tensors.pop(key)
            if tuple(tensor.shape) != shape:
                raise CheckpointError(f"{path}: {key} has shape {tuple(tensor.shape)}, wanted {shape}")
            _check_numbers(tensor, f"{path}: tensor {key}")
            return tensor
    raise CheckpointError(f"{path}: {PREFIX}{module}.{half}.weight is missing")


def _read_extra(model: nn.Module, path: Path) -> dict[str, Tensor]:
    model_views, extra = views(model), read_tensors(path)
    for name, tensor in extra.items():
        view = model_views.get(name)
        if view is None or name.endswith(PACKED):
            raise CheckpointError(f"{path}: tensor {name} has no place in the model")
        if view.shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, wanted {tuple(view.shape)}"
            )
        _check_numbers(tensor, f"{path}: tensor {name}")
    return extra


def _check_numbers(tensor: Tensor, where: str) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{where} has dtype {tensor.dtype}; wanted a floating-point weight")
    check_values(tensor, where)


def read_base(folder: Path) -> Base | None:
    """What the adapter in `folder` says it was trained on."""
    return Base.from_file(folder / BASE_FILE) if is_there(folder / BASE_FILE) else None


def _pick(model_views: dict[str, Tensor], name: str) -> Tensor:
    if name not in model_views:
        raise CheckpointError(f"no tensor {name} in the model")
    return model_views[name]
