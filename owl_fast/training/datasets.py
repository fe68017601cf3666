"""SPEC -> the samples of one or many files, by index; nothing of them is kept in memory.

A SPEC is PATH[:WEIGHT]. PATH: a file, a glob (`shards/*.tar`, `**` for folders in folders), or files written
with braces (`shards/{00000..00099}.tar`, `{a,b}.json`). WEIGHT: a number above 0. When the whole SPEC is the
name of a file, that is meant. Without any weight every sample is drawn equally often; as soon as one source
has a weight, the others have 1, and the draws are shared out by the weights.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from owl_fast.errors import DataError, ParameterError, Reason
from owl_fast.training.chunks import over_chunks
from owl_fast.training.readers.columns import NAMES, renamed
from owl_fast.training.readers.formats import FORMATS, sniff
from owl_fast.training.rows import Row, Rows, open_rows
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.sources import Source

MAX_FILES = 100_000
MANY_FILES = 8
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class ReadOptions:
    """format: a name of readers.formats.FORMATS; told by the content when None.

    pictures: folder that picture paths start from and do not leave; each file's own by default. columns: our
    name of a column (readers.columns) -> the file's. with_header: captions come in the conversation form.
    progress: a bar on stderr while many files are opened.
    """

    format: str | None = None
    pictures: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    with_header: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ParameterError(f"format {self.format!r}: wanted one of {', '.join(FORMATS)}")
        if odd := set(self.columns) - set(NAMES):
            raise ParameterError(f"column {min(odd)!r}: wanted one of {', '.join(NAMES)}, as in image=path")
        if self.columns and self.format not in (None, "columns"):
            raise ParameterError(f"columns are named, but the format is {self.format}; leave one of them out")


class Dataset:
    """dataset[index] -> Sample or Caption; DataError with file, line and reason when that row is bad."""

    def __init__(
        self,
        name: str,
        parts: Sequence[Rows],
        options: ReadOptions,
        weight: float | None = None,
    ) -> None:
        self.name, self.parts, self.options, self.weight = name, tuple(parts), options, weight
        self._ends = list(accumulate(len(part) for part in self.parts))
        self.format = "columns" if options.columns else options.format or sniff(self._filled())
        self._kept: array[int] | None = None  # indices of the rows that are left when bad ones are out
        self._left_out: dict[str, int] = {}

    def _filled(self) -> Rows:
        """The first file with rows in it."""
        for part in self.parts:
            if len(part):
                return part
        raise DataError(f"{self.name}: {len(self.parts)} file(s) without a row ({self.parts[0].path}, ...)")

    def __len__(self) -> int:
        return self._rows if self._kept is None else len(self._kept)

    @property
    def _rows(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample | Caption:
        if self._kept is not None:
            index = self._kept[index]
        part = bisect_right(self._ends, index)
        rows = self.parts[part]
        record = FORMATS[self.format].read(self._named(rows[index - (self._ends[part] - len(rows))]))
        if isinstance(record, Caption) and self.options.with_header:
            return replace(record, with_header=True)
        return record

    def _named(self, row: Row) -> Row:
        """The row with the columns under our names."""
        columns = self.options.columns
        if not columns:
            return row
        if missing := [theirs for theirs in columns.values() if theirs not in row.fields]:
            has = ", ".join(map(repr, row.fields))
            raise row.error(f"no column {missing[0]!r:.60}; it has {has:.200}", Reason.WRONG_KEYS)
        return replace(row, fields=renamed(row.fields, columns))

    def without(self, bad: Collection[int], reasons: Mapping[str, int]) -> Dataset:
        """The same with these indices left out; reasons are described with it."""
        new = Dataset(self.name, self.parts, replace(self.options, format=self._forced()), self.weight)
        dropped = set(bad)
        old = range(self._rows) if self._kept is None else self._kept
        new._kept = array("Q", (row for index, row in enumerate(old) if index not in dropped))
        new._left_out = dict(reasons)
        return new

    def _forced(self) -> str | None:
        return None if self.options.columns else self.format

    @property
    def groups(self) -> list[int] | None:
        """Sizes of the parts that are cheap to read one after another; None when any row is as cheap."""
        if all(part.groups is None for part in self.parts):
            return None
        sizes = [size for part in self.parts for size in part.groups or [len(part)]]
        if self._kept is None:
            return sizes
        ends = [bisect_left(self._kept, end) for end in accumulate(sizes)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def describe(self) -> dict[str, Any]:
        """What tells this data from other data, for JSON."""
        digest = hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()
        described: dict[str, Any] = {"format": self.format, "files": len(self.parts), "sha256": digest}
        return {**described, "left_out": self._left_out} if self._kept is not None else described


def open_datasets(specs: Sequence[str], options: ReadOptions | None = None) -> list[Dataset]:
    """A dataset per SPEC; DataError: no such file, a file that is cut off, or no format that fits."""
    return [open_dataset(spec, options) for spec in specs]


def open_dataset(spec: str, options: ReadOptions | None = None) -> Dataset:
    options = options or ReadOptions()
    path, weight = split_weight(spec)
    name = os.path.basename(path)
    return Dataset(name, _open_files(name, find_files(path), options), options, weight)


def _open_files(name: str, files: Sequence[Path], options: ReadOptions) -> list[Rows]:
    """Going through files takes time; many of them are shared out among processes."""

    def work(indices: range) -> list[Rows]:
        return [open_rows(files[index], options.pictures) for index in indices]

    many = len(files) >= MANY_FILES
    parts: list[Rows] = []
    with tqdm(
        total=len(files), desc=f"opening {name}", unit="file", disable=not (many and options.progress)
    ) as bar:
        for size, opened in over_chunks(len(files), work, None if many else 0, chunk=1):
            parts += opened
            bar.update(size)
    return parts


def as_sources(datasets: Sequence[Dataset]) -> list[Source]:
    """Sources of different names, with their weights."""
    weighted = any(dataset.weight is not None for dataset in datasets)
    sources: list[Source] = []
    for number, dataset in enumerate(datasets, start=1):
        names = {source.name for source in sources}
        name = dataset.name if dataset.name not in names else f"{dataset.name} ({number})"
        weight = (dataset.weight or 1.0) if weighted else float(len(dataset))
        data = dataset.describe()
        sources.append(Source(name, dataset.__getitem__, weight, len(dataset), dataset.groups, data))
    return sources


def split_weight(spec: str) -> tuple[str, float | None]:
    """PATH[:WEIGHT] -> (path, weight)."""
    path, colon, text = spec.rpartition(":")
    if not colon or os.path.lexists(spec):
        return spec, None
    try:
        weight = float(text)
    except ValueError:
        return spec, None
    if not (weight > 0 and math.isfinite(weight)):
        raise DataError(f"{spec}: weight {text}; wanted a number above 0")
    return path, weight


def find_files(path: str) -> list[Path]:
    """The files that a path, glob or range in braces names, sorted."""
    if os.path.lexists(path):
        found = [path]
    else:
        found = sorted({file for part in _spread(path) for file in _matching(part)})
    for file in found:
        if os.path.isdir(file):
            raise DataError(f"{file}: a folder; name its files, as in {os.path.join(file, '*.jsonl')}")
    if not found:
        raise DataError(f"{path}: no such file")
    return [Path(file) for file in found]


def _matching(pattern: str) -> list[str]:
    """Files of a glob; a plain name comes back as it is, to be complained about when it is not there."""
    if glob.has_magic(pattern):
        return glob.glob(pattern, recursive=True)
    if not os.path.lexists(pattern):
        raise DataError(f"{pattern}: no such file")
    return [pattern]


def _spread(text: str) -> list[str]:
    """`a{1..3}` and `a{x,y}` written out; braces within braces first."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    found: list[str] = []
    for word in _words(match[1]):
        found += _spread(text[: match.start()] + word + text[match.end() :])
        if len(found) > MAX_FILES:
            raise DataError(f"{text}: more than {MAX_FILES} files")
    return found


def _words(inside: str) -> list[str]:
    """What stands between braces: a range of numbers, as wide as its first one, or words."""
    if ends := _RANGE.fullmatch(inside):
        first, last = int(ends[1]), int(ends[2])
        if last < first or last - first >= MAX_FILES:
            raise DataError(f"{{{inside}}}: wanted a range of at most {MAX_FILES} numbers that goes up")
        return [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
    return inside.split(",")
