"""The documents of the repository, and their blocks."""

from __future__ import annotations

from pathlib import Path

from tests.documents.blocks import blocks

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.md", "docs/*.md", "recipes/*/*.md", "examples/*/*.md", "owl_fast/assets/*/*.md")
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for place in PLACES
    for path in sorted(ROOT.glob(place))
}
BLOCKS = {name: blocks(text) for name, text in DOCUMENTS.items()}
