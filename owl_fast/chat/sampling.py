"""The settings of an answer, by the names a user types: flags (--top-k) and /set (top_k)."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from owl_fast.errors import ParameterError

if TYPE_CHECKING:
    from owl_fast.engine.sampling import SamplingParams

SETTINGS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 (default) takes the likeliest token, above 0 samples"),
    "top_k": (int, "sample among the k likeliest tokens"),
    "top_p": (float, "sample among the likeliest tokens that sum to p"),
    "min_p": (float, "sample among tokens at least p times as likely as the likeliest"),
    "repetition_penalty": (float, "above 1 makes tokens already said less likely"),
    "no_repeat_ngram": (int, "never say the same N tokens twice"),
    "beams": (int, "beam search of this width"),
    "max_tokens": (int, "length of an answer at most (default: what the context leaves)"),
    "seed": (int, "of the draws: same seed, same answer"),
}
NAMES = (*SETTINGS, "stop")


def add_sampling_flags(group: argparse._ActionsContainer, **defaults: float) -> None:
    """defaults: of a command whose own are others."""
    for name, (kind, text) in SETTINGS.items():
        default = defaults.get(name)
        if default is not None:
            text = f"{text.partition(' (default')[0]} (default: {default})"
        metavar = "N" if kind is int else "X"
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text, default=default
        )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer; repeatable"
    )


def from_flags(flags: Mapping[str, Any]) -> SamplingParams:
    """ParameterError or UnsupportedError for a value out of range."""
    from owl_fast.engine.sampling import SamplingParams

    given = {name: flags[name] for name in SETTINGS if flags[name] is not None}
    return SamplingParams(**given, stop=tuple(flags["stop"]))


def change(params: SamplingParams, name: str, text: str) -> SamplingParams:
    """The settings with one changed to what was typed; "default" takes a change back."""
    name = known(name)
    return replace(params, **{name: _value(name, text)})


def known(name: str) -> str:
    """The name of a setting as it is spelled here; ParameterError when there is none."""
    name = name.replace("-", "_")
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(NAMES)}"
        raise ParameterError(f"no setting {name!r:.40}; {hint}")
    return name


def rows(params: SamplingParams) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of every setting."""
    meanings = {**{name: text for name, (_, text) in SETTINGS.items()}, "stop": "texts that end the answer"}
    shown = {name: getattr(params, name) for name in NAMES}
    shown["stop"] = ", ".join(map(repr, params.stop)) or None
    return [(name, "-" if shown[name] is None else str(shown[name]), meanings[name]) for name in NAMES]


def changed(params: SamplingParams) -> dict[str, Any]:
    """Only what differs from the defaults."""
    return {name: getattr(params, name) for name in NAMES if getattr(params, name) != default(name)}


def default(name: str) -> Any:
    from owl_fast.engine.sampling import SamplingParams

    return getattr(SamplingParams(), name)


def _value(name: str, text: str) -> Any:
    if text == "default":
        return default(name)
    if name == "stop":
        return (text,)
    kind = SETTINGS[name][0]
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ParameterError(f"{name} is {text!r:.40}; wanted {wanted}, or default") from None
