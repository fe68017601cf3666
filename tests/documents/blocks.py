"""The blocks of a Markdown document: indented by four spaces or fenced, and their kind."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

LANGUAGES = {"python": "python", "py": "python", "sh": "shell", "bash": "shell", "console": "console"}
OURS = ("owl-fast", "python", "pip", "make", "torchrun")
# A block without a language is shell if it begins with one of these.
PROGRAMS = (*OURS, "curl", "docker", "eval", "cat", "export", "serve", "git", "cd", "CMAKE_ARGS")


@dataclass(frozen=True)
class Block:
    """line: of its first line of text, from 1. span: all its lines with the fences, from 0. heading: the
    nearest one above."""

    line: int
    span: range
    language: str
    heading: str
    text: str

    @property
    def kind(self) -> str:
        """python, shell, console (`$ command` and what it prints) or other."""
        first = re.match(r"[\w-]*", self.text)
        if self.language:
            return LANGUAGES.get(self.language, "other")
        if self.text.startswith("$ "):
            return "console"
        return "shell" if first and first[0] in PROGRAMS else "other"

    @property
    def script(self) -> str:
        """What of it is for the shell."""
        if self.kind != "console":
            return self.text
        lines = self.text.splitlines()
        typed, going_on = [], False
        for line in lines:
            if going_on or line.startswith("$ "):
                typed.append(line if going_on else line.removeprefix("$ "))
                going_on = line.endswith("\\")
        return "\n".join(typed) + "\n"

    @property
    def shown(self) -> list[str]:
        """The lines of a console that are no commands."""
        typed = set(self.script.splitlines())
        return [line for line in self.text.splitlines() if line.removeprefix("$ ") not in typed]


def blocks(document: str) -> list[Block]:
    return list(_blocks(document.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    heading, at = "", 0
    while at < len(lines):
        line = lines[at]
        if found := re.match(r" *(```+|~~~+) *(\S*)", line):
            end = at + 1
            while end < len(lines) and not re.fullmatch(rf" *{found[1]}[`~]* *", lines[end]):
                end += 1
            assert end < len(lines), f"line {at + 1}: a fence that is never closed"
            yield Block(at + 2, range(at, end + 1), found[2], heading, _text(lines[at + 1 : end]))
            at = end + 1
        elif line.startswith("    ") and line.strip() and (at == 0 or _ends(lines[at - 1])):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(at + 1, range(at, end), "", heading, _text(lines[at:end]))
            at = end
        else:
            heading = line.lstrip("# ") if re.match("#+ ", line) else heading
            at += 1


def _ends(line: str) -> bool:
    """Whether a block may follow this line: an indented line goes on with the paragraph above it."""
    return not line.strip() or line.startswith("#")


def _text(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n") + "\n"


def without_blocks(document: str) -> str:
    """The document's prose: every line of a block is empty."""
    lines = document.splitlines()
    for block in blocks(document):
        for at in block.span:
            lines[at] = ""
    return "\n".join(lines)


def spoken_commands(document: str) -> list[str]:
    """Commands within sentences: `owl-fast doctor MODEL`, with what follows the program."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(document))
    words = (" ".join(span.split()) for span in spans)
    return [text for text in words if text.startswith(tuple(f"{name} " for name in OURS))]
