"""Pages that are one file and open without a network: their templates, and what all of them begin with."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SHARED = Path(__file__).parent / "page"  # base.css, head.html


def templates(folder: Path) -> Environment:
    """Those of a folder, beside the shared ones; all they are given is escaped."""
    return Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
