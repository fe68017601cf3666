"""LoRA adapters (arXiv 2106.09685): attach, merge, and PEFT's files.

An adapter folder holds adapter_config.json and adapter_model.safetensors (or .bin) as PEFT writes them, and,
when more than the low-rank updates was trained (stage 2 trains the abstractor), non_lora.safetensors with
those tensors under the checkpoint's names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from owl_fast.checkpoints.manifest import Manifest
from owl_fast.checkpoints.names import views
from owl_fast.checkpoints.tensorfile import check_values, read_tensors, write_tensors
from owl_fast.checkpoints.writer import whole_folder
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.files import read_json
from owl_fast.models.fusion import module_sources
from owl_fast.models.layers import Linear, LoraPair

PREFIX = "base_model.model."
CONFIG_FILE, EXTRA_FILE = "adapter_config.json", "non_lora.safetensors"
MAX_RANK, MAX_ALPHA, MAX_REPEATS, MAX_PATTERN = 65_536, 1e6, 3, 1000
WEIGHT_FILES = {"safetensors": "adapter_model.safetensors", "bin": "adapter_model.bin"}

# PEFT options that change the mathematics, and the only value for which plain LoRA is what they describe.
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "target_parameters": None,
}


@dataclass(frozen=True)
class LoraConfig:
    """Rank r, scale alpha / r, dropout on the update's input, and the targets.

    target_modules: a regular expression matched against the whole module name of the checkpoint, or a tuple
    of last name parts. The default is the original's: q_proj and v_proj of the language model.
    """

    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = r".*language_model.*\.(q_proj|v_proj)"

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def targets(self, module: str) -> bool:
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, module) is not None
        return module.rpartition(".")[2] in self.target_modules

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LoraConfig:
        """Read PEFT's adapter_config.json; an option plain LoRA cannot honour is an UnsupportedError."""
        for name, plain in PLAIN.items():
            if raw.get(name, plain) not in (plain, None):
                raise UnsupportedError(
                    f"{CONFIG_FILE}: {name} = {raw[name]!r:.60}; only {plain!r} is supported"
                )
        targets, r, alpha = raw.get("target_modules"), raw.get("r"), raw.get("lora_alpha", 8)
        dropout = raw.get("lora_dropout", 0.0)
        if not isinstance(r, int) or not 1 <= r <= MAX_RANK or not _is_within(alpha, MAX_ALPHA):
            raise CheckpointError(
                f"{CONFIG_FILE}: r = {r!r:.60}, lora_alpha = {alpha!r:.60}: "
                f"wanted r of 1..{MAX_RANK} and a finite lora_alpha"
            )
        if not _is_within(dropout, 1.0) or dropout < 0:
            raise CheckpointError(f"{CONFIG_FILE}: lora_dropout = {dropout!r:.60}: wanted 0..1")
        if not isinstance(targets, str | list) or not all(isinstance(t, str) for t in targets):
            raise CheckpointError(f"{CONFIG_FILE}: target_modules must be a string or a list of strings")
        if isinstance(targets, str):
            _check_pattern(targets)
        return cls(
            r=r,
            alpha=float(alpha),
            dropout=float(dropout),
            target_modules=targets if isinstance(targets, str) else tuple(targets),
        )

    def to_dict(self, base: str) -> dict[str, Any]:
        targets = self.target_modules
        return {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base,
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
        }


def _is_within(value: object, limit: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit


def _check_pattern(pattern: str) -> None:
    """UnsupportedError for a regular expression that is broken or could take for ever on a module's name."""
    plain = re.sub(r"\\.|\(\?", "(", pattern)  # without escapes and the heads of special groups
    repeats = len(re.findall(r"[*+{?]\??", plain))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+{]", plain):
        raise UnsupportedError(
            f"{CONFIG_FILE}: target_modules {pattern!r:.200} repeats a group, has more than {MAX_REPEATS} "
            f"repetitions or {MAX_PATTERN} characters; name the modules in a list"
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{CONFIG_FILE}: target_modules {pattern!r:.200} is no regular expression ({error})"
        ) from None


class Slot(NamedTuple):
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


def lora_slots(model: nn.Module) -> dict[str, Slot]:
    """Every slot of the model by the checkpoint's module name."""
    slots = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            start = 0
            for source, rows in zip(module_sources(name), module.rows, strict=True):
                slots[source] = Slot(module, source.rpartition(".")[2], start, start + rows)
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
            rows = slot.linear.weight[slot.start : slot.end]
            delta = slot.pair.lora_B.float() @ slot.pair.lora_A.float() * slot.pair.scale
            rows.copy_((rows.float() + delta).to(rows.dtype))
    detach_(model)


def detach_(model: nn.Module) -> None:
    """Remove every update, leaving the weights as they are."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.lora.clear()
            module.lora_rows.clear()


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    config: LoraConfig,
    *,
    base: str,
    extra: Iterable[str] = (),
    format: str = "safetensors",
) -> None:
    """Write the model's updates as PEFT does, in a new folder, whole or not at all.

    base: name of the model they belong to. extra: checkpoint tensors trained beside them. format:
    "safetensors" or "bin", of the updates' file.
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
        (staging / CONFIG_FILE).write_text(
            json.dumps(config.to_dict(base), indent=2) + "\n", encoding="utf-8"
        )
        write_tensors(staging / WEIGHT_FILES[format], tensors)
        if others:
            write_tensors(staging / EXTRA_FILE, others)


@torch.no_grad()
def load_adapter(model: nn.Module, folder: str | Path) -> LoraConfig:
    """Attach the adapter in `folder`; strict: every file tensor fits a slot, every targeted slot gets both.

    Tensors of non_lora.safetensors replace the model's. CheckpointError names file and tensor; the model is
    changed only when all of it fits.
    """
    folder = Path(folder)
    if (manifest := Manifest.read(folder)) is not None:
        manifest.check()
    config = LoraConfig.from_dict(read_json(folder / CONFIG_FILE))
    present = [folder / file for file in WEIGHT_FILES.values() if (folder / file).exists()]
    if len(present) != 1:
        wanted = " or ".join(WEIGHT_FILES.values())
        raise CheckpointError(f"{folder}: wanted one of {wanted}, found {len(present)} of them")
    path = present[0]
    tensors = read_tensors(path)
    slots = {name: slot for name, slot in lora_slots(model).items() if config.targets(name)}
    halves = []
    for name, slot in slots.items():
        a = _take(tensors, path, name, "lora_A", (config.r, slot.linear.weight.shape[1]))
        b = _take(tensors, path, name, "lora_B", (slot.end - slot.start, config.r))
        halves.append((a, b))
    if tensors or not slots:
        what = f"tensor {sorted(tensors)[0]} fits no" if tensors else "there is no"
        raise CheckpointError(f"{path}: {what} module matching {config.target_modules!r}")
    extra = _read_extra(model, folder / EXTRA_FILE) if (folder / EXTRA_FILE).exists() else []
    for slot, (a, b) in zip(slots.values(), halves, strict=True):
        slot.put(a, b, config)
    for view, tensor in extra:
        view.copy_(tensor)
    return config


def _take(tensors: dict[str, Tensor], path: Path, module: str, half: str, shape: tuple[int, int]) -> Tensor:
    """PEFT 0.3 and later spell the key without the adapter's name; full state dicts carry `.default`."""
    for key in (f"{PREFIX}{module}.{half}.weight", f"{PREFIX}{module}.{half}.default.weight"):
        if key in tensors:
            tensor = tensors.pop(key)
            if tuple(tensor.shape) != shape:
                raise CheckpointError(f"{path}: {key} has shape {tuple(tensor.shape)}, wanted {shape}")
            check_values(tensor, f"{path}: tensor {key}")
            return tensor
    raise CheckpointError(f"{path}: {PREFIX}{module}.{half}.weight is missing")


def _read_extra(model: nn.Module, path: Path) -> list[tuple[Tensor, Tensor]]:
    """The model's tensors that non_lora.safetensors replaces, each with its new values."""
    model_views, found = views(model), []
    for name, tensor in read_tensors(path).items():
        view = _pick(model_views, name)
        if view.shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, wanted {tuple(view.shape)}"
            )
        check_values(tensor, f"{path}: tensor {name}")
        found.append((view, tensor))
    return found


def _pick(model_views: dict[str, Tensor], name: str) -> Tensor:
    if name not in model_views:
        raise CheckpointError(f"no tensor {name} in the model")
    return model_views[name]
