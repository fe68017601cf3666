"""The table of data formats, and how one is told from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from owl_fast.errors import DataError
from owl_fast.training.readers import (
    alpaca,
    baize,
    coco,
    columns,
    llava,
    openai_messages,
    original,
    owleval,
    sharegpt,
    webdataset,
)
from owl_fast.training.rows import Row, Rows
from owl_fast.training.sample import Caption, Sample

SNIFFED = 100  # rows looked at


@dataclass(frozen=True)
class Format:
    about: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Row], Sample | Caption]


# In the order they are tried: a format stands before another one whose rows it has too.
FORMATS = {
    "webdataset": Format("tar files of img2dataset and webdataset", webdataset.fits, webdataset.read),
    "coco": Format("COCO captions", coco.fits, coco.read),
    "original": Format("the original's records", original.fits, original.read),
    "llava": Format("LLaVA's conversations with pictures", llava.fits, llava.read),
    "sharegpt": Format("ShareGPT and Vicuna", sharegpt.fits, sharegpt.read),
    "openai": Format("OpenAI's messages", openai_messages.fits, openai_messages.read),
    "alpaca": Format("Alpaca's instructions", alpaca.fits, alpaca.read),
    "baize": Format("Baize's conversations", baize.fits, baize.read),
    "owleval": Format("OwlEval's questions", owleval.fits, owleval.read),
    "columns": Format("CSV, TSV, Parquet or JSON with the columns of --columns", columns.fits, columns.read),
}


def sniff(rows: Rows) -> str:
    """The format's name: the first one that any of the first rows has."""
    found: list[Mapping[str, Any]] = []
    for index in range(min(SNIFFED, len(rows))):
        try:
            found.append(rows[index].fields)
        except DataError:
            continue  # a broken row says nothing; whoever reads it will say where it is
    for name, format in FORMATS.items():
        if any(map(format.fits, found)):
            return name
    keys = ", ".join(map(repr, found[0]))[:200] if found else "no readable rows"
    raise DataError(
        f"{rows.path}: none of the known formats fits ({keys}); name one with --format "
        f"({', '.join(FORMATS)}), or the columns with --columns image=...,caption=..."
    )
