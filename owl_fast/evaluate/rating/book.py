"""What raters said: one file each, and every change on disk before the rater hears that it is."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path

from owl_fast.errors import ParameterError
from owl_fast.evaluation.json_lines import LineFile
from owl_fast.evaluation.ratings import GRADES, JUDGE, Rating, about, last_ratings, read_ratings
from owl_fast.evaluation.study import RATINGS, Study, slug

LONGEST_NAME = 60  # letters


def check_name(name: object) -> str:
    """A rater's name; ParameterError."""
    if not isinstance(name, str) or not (name := " ".join(name.split())) or not name.isprintable():
        raise ParameterError("wanted the rater's name")
    if len(name) > LONGEST_NAME or name.startswith(JUDGE):
        raise ParameterError(
            f"wanted a name of at most {LONGEST_NAME} letters that does not begin with {JUDGE!r}, "
            "as those of models do"
        )
    return name


class Book:
    """The ratings of a study by the people who use this process; any thread may ask."""

    def __init__(self, study: Study) -> None:
        self._study, self._folder = study, study.folder
        self._files: dict[Path, LineFile] = {}
        self._ratings: dict[tuple[str, int, str], Rating] = {}
        self._lock = threading.Lock()
        self.changed: dict[str, Path] = {}  # raters of this process -> their file

    def raters(self) -> dict[str, int]:
        """People who have rated anything in this study -> how many answers."""
        found: dict[str, int] = {}
        for rating in read_ratings(self._folder):
            if rating.model is None and about(self._study, rating):
                found[rating.rater] = found.get(rating.rater, 0) + 1
        return dict(sorted(found.items()))

    def of(self, rater: str) -> Mapping[tuple[int, str], Rating]:
        """By question and system. LockedError while another process writes this rater's file; DataError."""
        with self._lock:
            self._open(rater)
            kept = [one for one in self._ratings.values() if one.rater == rater and about(self._study, one)]
            return {(rating.question, rating.system): rating for rating in kept}

    def change(
        self, rater: str, number: int, system: str, *, grade: str | None = None, shown: str | None = None
    ) -> Rating:
        """What is None stays as it was. The rating as it is on disk now; DiskError, and it is as before."""
        with self._lock:
            file = self._open(rater)
            digest = self._study.answers[system].digest(number)
            none = Rating(rater, number, system, "", digest=digest)
            before = self._ratings.get((rater, number, system), none)
            before = before if about(self._study, before) else none
            after = dataclasses.replace(
                before,
                grade=before.grade if grade is None else grade,
                shown=before.shown if shown is None else shown,
                digest=digest,
            )
            if after != before:
                file.append(after.to_dict())
                self._ratings[rater, number, system] = after
                self.changed[rater] = file.path
            return after

    def _open(self, rater: str) -> LineFile:
        path = self._folder / RATINGS / f"{slug(rater)}.jsonl"
        if path not in self._files:
            file = LineFile(path)
            try:
                self._ratings |= last_ratings(file.lines)
            except BaseException:
                file.close()
                raise
            self._files[path] = file
        return self._files[path]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def check_grade(grade: object) -> str | None:
    """ParameterError."""
    if grade is None or (isinstance(grade, str) and grade in ("", *GRADES)):
        return grade
    raise ParameterError(f"wanted a grade of {', '.join(GRADES)}, or nothing to take it back")
