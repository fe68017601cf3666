"""Who stands beside owl_fast."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TypeVar

from benchmarks.steps import OURS

T = TypeVar("T")
LEFT_OUT = "left out by --peers"


def chosen(contenders: Mapping[str, T | str], args: argparse.Namespace) -> dict[str, T | str]:
    """The same, with the reason why in place of each peer that --peers leaves out."""
    return {
        name: contender if name.startswith(OURS) or is_wanted(name, args) else LEFT_OUT
        for name, contender in contenders.items()
    }


def is_wanted(name: str, args: argparse.Namespace) -> bool:
    return args.peers is None or any(text.lower() in name.lower() for text in args.peers)
