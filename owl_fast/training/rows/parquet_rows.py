"""Parquet files: their row groups are read as needed, and the last few are kept."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from owl_fast.errors import DataError, UnsupportedError
from owl_fast.training.order import WINDOW
from owl_fast.training.rows.row import Row
from owl_fast.training.rows.stamp import stamp

FOOTER_BYTES = 1 << 20


class ParquetRows:
    """fields: values by column name."""

    def __init__(self, path: Path, root: Path | None) -> None:
        self.path, self.root = path, path.parent if root is None else root
        with _arrow(path), _opened(path) as file:
            metadata = file.metadata
            self._sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if sum(self._sizes) != metadata.num_rows or min(self._sizes, default=0) < 0:
                raise DataError(
                    f"{path}: its row groups do not have the {metadata.num_rows} rows it tells of"
                )
        self._ends = list(accumulate(self._sizes))
        with path.open("rb") as raw:
            raw.seek(max(0, path.stat().st_size - FOOTER_BYTES))
            self.digest = stamp(path, hashlib.sha256(raw.read()))

    @property
    def groups(self) -> Sequence[int] | None:
        """Rows of each row group."""
        return self._sizes

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        group = bisect_right(self._ends, index)
        place = index - (self._ends[group] - self._sizes[group])
        name = f"{self.path}:row {index + 1}"
        with _arrow(name):
            rows = _group(self.path, group).slice(place, 1).to_pylist()
        if len(rows) != 1:
            raise DataError(f"{name}: not there; the file is broken")
        return Row(rows[0], name, self.root)


@lru_cache(maxsize=WINDOW)  # as many as an epoch goes through together
def _group(path: Path, group: int) -> Any:
    with _opened(path) as file:
        return file.read_row_group(group, use_threads=False)  # processes that read are many already


def _opened(path: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path)


@contextmanager
def _arrow(name: object) -> Iterator[None]:
    """Makes DataErrors of what pyarrow raises; UnsupportedError when it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise UnsupportedError(
            f"{name}: reading Parquet needs pyarrow: pip install '.[parquet]' in the checkout"
        ) from None
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        said = (str(error).splitlines() or ["broken"])[0]
        raise DataError(f"{name}: not readable as Parquet ({said:.200})") from None
