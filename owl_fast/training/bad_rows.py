"""Which rows of a dataset cannot be used, found before anything is drawn from it.

A row is bad when the very thing that a run does with it fails. So a run that leaves bad rows out is the run
on the rows that are left, to the bit.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tqdm import tqdm

from owl_fast.errors import DataError, OwlError, Reason, TooManyBadRows
from owl_fast.training.chunks import over_chunks
from owl_fast.training.datasets import Dataset
from owl_fast.training.sample import Caption, Sample

CAP = 0.001  # of all rows

Use = Callable[[Sample | Caption], object]


@dataclass
class BadRows:
    """What was found among `rows` rows. first: messages of the first ones; counts: by reason."""

    rows: int = 0
    first: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    indices: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def kinds(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())

    def __str__(self) -> str:
        if not self.indices:
            return f"{self.rows:,} rows, none of them bad"
        return f"{len(self.indices):,} of {self.rows:,} rows are bad: {self.kinds}"


def find_bad_rows(
    dataset: Dataset,
    use: Use,
    *,
    workers: int | None = None,
    keep: int = 10,
    cap: float | None = None,
    progress: bool = True,
) -> BadRows:
    """Go through all rows: use(dataset[index]) must raise no OwlError.

    workers: processes, one per core by default; 0 for this one alone. keep: messages kept. cap: share of the
    rows that may be bad; TooManyBadRows as soon as there are more.
    """
    found, done = BadRows(len(dataset)), 0
    limit = len(dataset) if cap is None else cap * len(dataset)
    with tqdm(total=len(dataset), desc=f"checking {dataset.name}", unit="row", disable=not progress) as bar:
        for size, bad in over_chunks(len(dataset), partial(_check, dataset, use), workers):
            done += size
            bar.update(size)
            for index, reason, message in bad:
                found.indices.append(index)
                found.counts[reason] += 1
                if len(found.first) < keep:
                    found.first.append(message)
            if len(found.indices) > limit:
                raise TooManyBadRows(
                    f"{dataset.name}: {len(found.indices)} bad among {done} of {len(dataset)} rows "
                    f"({found.kinds}), and {cap:.2%} may be left out; the first: {found.first[0]}"
                )
    return found


def leave_out_bad_rows(
    dataset: Dataset, use: Use, *, cap: float = CAP, workers: int | None = None, progress: bool = True
) -> Dataset:
    """The dataset without its bad rows; TooManyBadRows past the cap. Arguments as for find_bad_rows."""
    found = find_bad_rows(dataset, use, cap=cap, workers=workers, keep=1, progress=progress)
    return dataset.without(found.indices, found.counts)


def _check(dataset: Dataset, use: Use, indices: range) -> list[tuple[int, str, str]]:
    bad = []
    for index in indices:
        try:
            use(dataset[index])
        except OwlError as error:
            reason = error.reason if isinstance(error, DataError) else Reason.MALFORMED
            bad.append((index, str(reason), str(error)[:500]))
    return bad
