"""Parquet files: their row groups are read as needed, and the last few are kept."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
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
        with _opened(path) as file:
            metadata = file.metadata
            self._sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
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
        (fields,) = _group(self.path, group).slice(place, 1).to_pylist()
        return Row(fields, f"{self.path}:row {index + 1}", self.root)


@lru_cache(maxsize=WINDOW)  # as many as an epoch goes through together
def _group(path: Path, group: int) -> Any:
    with _opened(path) as file:
        return file.read_row_group(group, use_threads=False)  # processes that read are many already


def _opened(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UnsupportedError(
            f"{path}: reading Parquet needs pyarrow: pip install 'owl-fast[parquet]'"
        ) from None
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: no readable Parquet file ({str(error).splitlines()[0]:.200})") from None
