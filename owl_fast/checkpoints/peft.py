"""PEFT's files: the config of an adapter, and whole state dicts as PEFT wraps them.

In a wrapped state dict every name is prefixed, and low-rank updates lie beside the weights:

    base_model.model.<module>.weight | base_model.model.<module>.base_layer.weight
    base_model.model.<module>.lora_A.weight | base_model.model.<module>.lora_A.<adapter>.weight

Adapters by themselves (adapter_model.*) are read by owl_fast.lora.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from owl_fast.checkpoints.mapped import TensorInfo
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.files import read_json

PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
MAX_RANK, MAX_ALPHA, MAX_REPEATS, MAX_PATTERN = 65_536, 1e6, 3, 1000
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.(?P<adapter>\w+))?\.weight")


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
    def from_file(cls, path: Path) -> LoraConfig:
        """Read an adapter_config.json; errors as from_dict's, with the path."""
        raw = read_json(path)
        try:
            return cls.from_dict(raw)
        except (CheckpointError, UnsupportedError) as error:
            raise type(error)(f"{path}: {str(error).removeprefix(f'{CONFIG_FILE}: ')}") from None

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
        if not isinstance(r, int) or not 1 <= r <= MAX_RANK or not is_within(alpha, MAX_ALPHA):
            raise CheckpointError(
                f"{CONFIG_FILE}: r = {r!r:.60}, lora_alpha = {alpha!r:.60}: "
                f"wanted r of 1..{MAX_RANK} and a finite lora_alpha"
            )
        if not is_within(dropout, 1.0) or dropout < 0:
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


def is_within(value: object, limit: float) -> bool:
    """Whether it is a number from -limit to limit."""
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


class Update(NamedTuple):
    """A low-rank update W += (alpha / rank) B A of one weight, by the names its halves have in the file."""

    a: str
    b: str
    rank: int


def unwrap(path: Path, infos: Mapping[str, TensorInfo]) -> tuple[dict[str, str], dict[str, Update]]:
    """Take PEFT's decoration off the names of a state dict; plain ones come out as they are.

    Gives the file's name -> the plain one, halves of updates left out, and the updates by the plain name of
    their weight. CheckpointError: two tensors of one plain name, updates of several adapters, a half without
    its other half or its weight, or of a shape that does not fit.
    """
    names: dict[str, str] = {}
    origins: dict[str, str] = {}
    halves: dict[str, dict[str, str]] = {}
    adapters = set()
    for name in infos:
        plain = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        if match := _HALF.fullmatch(plain):
            adapters.add(match["adapter"] or "without a name")
            halves.setdefault(match["module"], {})[match["half"]] = name
        else:
            names[name] = plain
        if plain in origins:
            raise CheckpointError(f"{path}: {origins[plain]} and {name} are the same tensor; wanted one")
        origins[plain] = name
    if len(adapters) > 1:
        raise CheckpointError(
            f"{path}: holds updates of several adapters ({', '.join(sorted(adapters))}); "
            "wanted one: save the state dict with a single adapter"
        )
    weights = {f"{module}.weight": pair for module, pair in halves.items()}
    return names, {w: _update(path, infos, w, pair, origins.get(w)) for w, pair in weights.items()}


def _update(
    path: Path, infos: Mapping[str, TensorInfo], weight: str, pair: Mapping[str, str], base: str | None
) -> Update:
    if base is None:
        raise CheckpointError(
            f"{path}: updates {weight}, but does not hold it; an adapter goes on top of a model: "
            "name the model, and this as its adapter"
        )
    if missing := {"A", "B"} - pair.keys():
        raise CheckpointError(f"{path}: half {missing.pop()} of the low-rank update of {weight} is missing")
    (_, a), (_, b), (_, w) = ((name, infos[name].shape) for name in (pair["A"], pair["B"], base))
    if not (len(a) == len(b) == len(w) == 2 and (b[0], a[1]) == w and a[0] == b[1] > 0):
        raise CheckpointError(f"{path}: halves {a} and {b} do not update a weight {w}, {weight}")
    return Update(pair["A"], pair["B"], a[0])
