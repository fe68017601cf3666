"""Ratings of answers, by people and by models, as they lie in a study.

Grades are the paper's (arXiv 2304.14178): A is the best, D the worst. A later line of a rater on the same
answer replaces the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from owl_fast.errors import DataError
from owl_fast.evaluation.json_lines import read_lines
from owl_fast.evaluation.owleval import ABILITIES
from owl_fast.evaluation.study import PAIRS, RATINGS, Study

GRADES = {
    "A": "right and complete",
    "B": "acceptable, with small errors or gaps",
    "C": "follows the question, but with large errors",
    "D": "beside the question, or wrong",
}
JUDGE = "judge "  # what the names of raters begin with that are models


@dataclass(frozen=True)
class Rating:
    """grade: of GRADES, or "" while there is none (not yet, or taken back). shown: letters of the abilities
    the answer shows, of those its question asks for. model: the one that rated, None for a person. digest:
    of the answer that was rated (Answers.digest), "" where that is not known."""

    rater: str
    question: int
    system: str
    grade: str
    shown: str = ""
    model: str | None = None
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "rater": self.rater,
            "model": self.model,
            "question_id": self.question,
            "system": self.system,
            "grade": self.grade,
            "abilities": ",".join(self.shown),
            "answer": self.digest,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any], where: str) -> Rating:
        """DataError unless it is what to_dict makes."""
        rater, model = fields.get("rater"), fields.get("model")
        number, system, grade = fields.get("question_id"), fields.get("system"), fields.get("grade")
        shown, digest = fields.get("abilities", ""), fields.get("answer", "")
        names = isinstance(rater, str) and isinstance(system, str) and isinstance(model, str | None)
        letters = shown.replace(",", "") if isinstance(shown, str) else "?"
        if (
            not names
            or not isinstance(digest, str)
            or type(number) is not int
            or grade not in ("", *GRADES)
            or not set(letters) <= ABILITIES.keys()
        ):
            raise DataError(
                f"{where}: no rating; wanted rater, model, question_id, system, grade (A to D), abilities"
            )
        return cls(rater, number, system, grade, letters, model, digest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pair:
    """Scores of 1 to 10 a judge gave two answers to a question, the reference's among them, in one order.
    digests: of the system's answer and of the reference's, as of a Rating."""

    judge: str
    question: int
    system: str
    reference: str
    system_first: bool
    score: float
    reference_score: float
    digests: tuple[str, str] = ("", "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "judge": self.judge,
            "question_id": self.question,
            "system": self.system,
            "reference": self.reference,
            "system_first": self.system_first,
            "score": self.score,
            "reference_score": self.reference_score,
            "answers": self.digests,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any], where: str) -> Pair:
        """DataError unless it is what to_dict makes."""
        kinds = {
            "judge": (str,),
            "question_id": (int,),
            "system": (str,),
            "reference": (str,),
            "system_first": (bool,),
            "score": (int, float),
            "reference_score": (int, float),
        }
        if not all(type(fields.get(name)) in kind for name, kind in kinds.items()):
            raise DataError(f"{where}: no pair of scores; wanted {', '.join(kinds)}")
        for name in ("score", "reference_score"):
            if not 1 <= fields[name] <= 10:
                raise DataError(f"{where}: {name} is {fields[name]}; wanted 1 to 10")
        own, other = fields.get("answers") or ("", "")
        return replace(cls(*(fields[name] for name in kinds)), digests=(str(own), str(other)))


def read_ratings(folder: Path) -> list[Rating]:
    """The last rating of each rater on each answer, of all raters of a study; without those that have no
    grade."""
    found = last_ratings(_lines(folder / RATINGS))
    return [rating for rating in found.values() if rating.grade]


def last_ratings(lines: Iterable[tuple[str, dict[str, Any]]]) -> dict[tuple[str, int, str], Rating]:
    """By rater, question and system, of lines as read_lines gives them."""
    found: dict[tuple[str, int, str], Rating] = {}
    for where, fields in lines:
        rating = Rating.from_dict(fields, where)
        found[rating.rater, rating.question, rating.system] = rating
    return found


def read_pairs(folder: Path) -> list[Pair]:
    """The last scores of each judge on each pair of answers in each order."""
    found: dict[tuple[str, int, str, str, bool], Pair] = {}
    for where, fields in _lines(folder / PAIRS):
        pair = Pair.from_dict(fields, where)
        found[pair.judge, pair.question, pair.system, pair.reference, pair.system_first] = pair
    return list(found.values())


def _lines(folder: Path) -> Sequence[tuple[str, dict[str, Any]]]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in read_lines(path, torn=True)]


def about(study: Study, judged: Rating | Pair) -> bool:
    """Whether it is about an answer that the study has, in the words it has now."""
    own = study.digest(judged.system, judged.question)
    if isinstance(judged, Rating):
        return own is not None and judged.digest in ("", own)
    now = own, study.digest(judged.reference, judged.question)
    same = (then in ("", digest) for then, digest in zip(judged.digests, now, strict=True))
    return own is not None and all(same)
