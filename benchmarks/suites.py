"""Suites: which cases run, of which sizes. A case reads its settings like those of the command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

NAMES = ("quick", "full")
DEFAULTS: dict[str, Any] = {"model": "7b-random", "quant": "none", "only": "", "no_compile": ""}
Settings = dict[str, Any]
T = TypeVar("T")

NANO: Settings = {"model": "nano"}
# Under five minutes on two cores: owl-nano's sizes, and of each case the shapes under "quick" in its table.
QUICK: tuple[tuple[str, Settings], ...] = (
    ("kernel-resources", {"only": "rms_norm"}),
    ("ops", {}),
    *((case, NANO) for case in ("load", "vision", "prefill", "decode", "memory", "throughput", "serve")),
    ("train", NANO),
    ("contention", NANO),
)


def parts(suite: str, device: torch.device) -> Iterator[tuple[str, Settings]]:
    """(case, settings) in the order they run: kernel-resources starts processes by fork, and comes before
    torch has threads."""
    if suite == "quick":
        yield from (
            (case, {**settings, "no_compile": "left out of the quick suite"}) for case, settings in QUICK
        )
        return
    weights = ("int4",) if device.type == "cpu" else ("none", "int4")
    yield from (("kernel-resources", {}), ("ops", {}), ("vision", {}))
    for quant, case in itertools.product(weights, ("load", "prefill", "decode", "memory", "contention")):
        yield case, {"quant": quant}
    for case in ("throughput", "serve"):
        yield case, NANO
        yield from ((case, {"quant": quant}) for quant in weights)
    yield from (("train", {}), ("data", {}), ("quantization", {}))


def sized(table: Mapping[str, T], args: argparse.Namespace) -> T:
    """A case's entry for the suite, else for the model; for a model from a folder that of 7b-random."""
    return table[next(name for name in (args.suite, args.model, DEFAULTS["model"]) if name in table)]
