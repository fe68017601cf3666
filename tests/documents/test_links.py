"""Links between documents lead to files and headings that are there; so do names of files in sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents.blocks import without_blocks
from tests.documents.pages import DOCUMENTS, ROOT

FOLDERS = "benchmarks|docs|examples|export|kernels|owl_fast|recipes|tests"
LINK = re.compile(r"!?\[[^\]]*\]\(\s*([^)\s]+)[^)]*\)")
NAMED = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)`")


def anchors(document: str) -> set[str]:
    """What GitHub calls the headings: lower case, words joined by dashes, no other signs; doubled ones get a
    number."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"(?m)^#+ +(.*?)(?: +#+)?$", without_blocks(document)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{found[name]}" if found[name] else name)
    return names


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere. Addresses on the net are not looked at."""
    wrong = []
    for target in LINK.findall(without_blocks(text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        there = place.exists() and place.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(place.read_text(encoding="utf-8"))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    assert broken(ROOT / name, DOCUMENTS[name]) == []


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_files_named_in_sentences(name: str) -> None:
    """The changelog may tell of what is gone."""
    named = NAMED.findall(without_blocks(DOCUMENTS[name]))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_what_is_broken() -> None:
    page = ROOT / "docs/chat.md"
    text = "[a](engine.md) [b](engine.md#memory) [c](#settings) [d](../README.md) [e](https://example.org)"
    assert broken(page, text) == []
    text = "[a](no.md) ![b](no.png) [c](engine.md#no-such) [d](#nowhere) [e](../../x.md)"
    assert broken(page, text) == ["no.md", "no.png", "engine.md#no-such", "#nowhere", "../../x.md"]
    assert broken(page, "`[a](no.md)` is code?\n\n    [a](no.md)\n") == ["no.md"]


def test_anchors() -> None:
    headings = ("# How fast?", "## A *b* `c_d`", "## [x](y.md), z", "## Twice", "## Twice", "    # none")
    assert anchors("\n\n".join(headings)) == {"how-fast", "a-b-c_d", "x-z", "twice", "twice-1"}
