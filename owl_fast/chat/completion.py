"""What Tab offers: commands, then what the command takes (paths, names of settings, topics)."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence

Candidates = Callable[[str], Iterable[str]]


class Completion:
    """commands: name ("/image") -> what completes its argument, None for none. help: a line for each."""

    def __init__(self, commands: dict[str, Candidates | None], help: dict[str, str]) -> None:
        self._commands = commands
        self.help = help

    def __call__(self, line: str) -> tuple[str, list[str]]:
        """The end of the line that is being completed, and what may stand in its place."""
        if not line.startswith("/") or "\n" in line:
            return "", []
        name, space, argument = line.partition(" ")
        if not space:
            return name, [known for known in self._commands if known.startswith(name)]
        candidates = self._commands.get(name)
        return argument, [] if candidates is None else list(candidates(argument))


def paths(typed: str) -> list[str]:
    """Files and folders that begin as typed, folders with a slash; a ~ stays as it was typed."""
    if typed == "~":
        return ["~/"]
    if "\0" in typed:
        return []
    expanded = os.path.expanduser(typed)
    found = []
    for path in sorted(glob.glob(glob.escape(expanded) + "*")):
        shown = typed + path[len(expanded) :]
        found.append(shown + "/" if os.path.isdir(path) else shown)
    return found


def common_start(texts: Sequence[str]) -> str:
    """What all begin with."""
    low, high = min(texts, default=""), max(texts, default="")
    differing = (number for number, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1])
    return low[: next(differing, len(low))]


def words(names: Iterable[str]) -> Candidates:
    """A fixed set of first words."""
    return lambda typed: [name for name in names if name.startswith(typed)]
