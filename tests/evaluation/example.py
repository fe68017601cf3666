"""docs/example-report.html: the published answers, with ratings that are made up. To write it again, with
OwlEval beside the checkout: python -m tests.evaluation.example"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from owl_fast.evaluate.report import write_report
from owl_fast.evaluation.ratings import Pair, Rating
from owl_fast.evaluation.study import Study, open_study
from tests.evaluation.small_set import write_lines

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "owleval"
PAGE = ROOT / "docs" / "example-report.html"
TITLE = "Example report: OwlEval’s published answers, made-up ratings"
NOTE = (
    "The grades, ticks and scores on this page are made up: drawn by lot, in the same way for every system "
    "(a failed answer gets D). They show what a report looks like and say nothing about these systems. "
    "The answers are the ones published with OwlEval; what is said of their files is so."
)
MODEL, REFERENCE = "made-up-model", "llava-13b"


def example_study(folder: Path, data: Path = REAL) -> Study:
    """Two people, of whom one stopped half way, a model that rates and compares."""
    study = open_study(folder, [data], data)
    lot = random.Random(1)
    first = _ratings(study, "made-up rater 1", lot)
    second = _ratings(study, "made-up rater 2", lot, after=first)[: len(first) // 2]
    model = _ratings(study, "made-up judge", lot, after=first, model=MODEL)
    (folder / "ratings").mkdir()
    for name, ratings in {"one": first, "two": second, "judge": model}.items():
        write_lines(folder / "ratings" / f"{name}.jsonl", [rating.to_dict() for rating in ratings])
    (folder / "pairs").mkdir()
    write_lines(folder / "pairs" / "judge.jsonl", [pair.to_dict() for pair in _pairs(study, lot)])
    return study


def _ratings(
    study: Study, rater: str, lot: random.Random, after: list[Rating] | None = None, model: str | None = None
) -> list[Rating]:
    """after: ratings that this rater agrees with more often than not."""
    before = {(rating.question, rating.system): rating.grade for rating in after or []}
    found = []
    for question in study.questions:
        for system, answers in study.answers.items():
            grade = before.get((question.id, system), "")
            if not grade or lot.random() < 0.4:
                grade = lot.choices("ABCD", (35, 30, 20, 15))[0]
            chance = {"A": 0.9, "B": 0.7, "C": 0.35, "D": 0.1}[grade]
            shown = "".join(letter for letter in question.abilities if lot.random() < chance)
            if question.id in answers.failed:
                grade, shown = "D", ""
            found.append(Rating(rater, question.id, system, grade, shown, model))
    return found


def _pairs(study: Study, lot: random.Random) -> list[Pair]:
    return [
        Pair(MODEL, question.id, system, REFERENCE, first, lot.randint(4, 9) + first, lot.randint(5, 9))
        for question in study.questions[:20]
        for system in study.answers
        if system != REFERENCE
        for first in (True, False)
    ]


def write_example(page: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        study = example_study(Path(folder) / "example")
        write_report(study.folder, TITLE, NOTE, texts=False)
        page.write_bytes((study.folder / "report.html").read_bytes())


if __name__ == "__main__":
    write_example(PAGE)
