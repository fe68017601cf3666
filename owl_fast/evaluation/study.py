"""A study: a folder in which the answers of systems to one set of questions are gathered and judged.

study.json              where the data set with the pictures is
questions.jsonl         a copy of its questions
answers/SYSTEM.jsonl    in OwlEval's own format, one file a system
records/SYSTEM.json     how answers of ours were made (record.py)
ratings/RATER.jsonl     grades (ratings.py)
pairs/JUDGE.jsonl       scores of answers beside a reference's (ratings.py)
report.html, report.json
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from owl_fast.errors import DataError
from owl_fast.evaluation.json_lines import replace_file
from owl_fast.evaluation.owleval import QUESTIONS, Answers, Question, read_answers, read_questions
from owl_fast.files import read_json

LONGEST = 200  # bytes of a file name, without its ending and what stands for a while around it
STUDY, ANSWERS, RECORDS, RATINGS, PAIRS = "study.json", "answers", "records", "ratings", "pairs"


@dataclass(frozen=True)
class Study:
    """data: the folder of the data set. answers: by system, in the order of their names. key: a secret, by
    which raters' answers get names that tell nothing."""

    folder: Path
    data: Path
    questions: Sequence[Question]
    answers: Mapping[str, Answers]
    key: str

    def digest(self, system: str, number: int) -> str | None:
        """Of an answer as it is now; None where there is none."""
        answers = self.answers.get(system)
        return answers.digest(number) if answers is not None and number in answers.texts else None


def open_study(folder: Path, sources: Sequence[Path] = (), data: Path | None = None) -> Study:
    """The study in a folder, begun there if there is none; `data` is the data set, told at least once.

    sources: files of answers, or folders of them, that are added. DataError when they or the data set differ
    from what the study holds.
    """
    data, key = begin_study(folder, data)
    questions = read_questions(folder / QUESTIONS)
    for path in _files(sources):
        _add(path, folder, questions)
    found: dict[str, Answers] = {}
    for path in _answered(folder):
        answers = read_answers(path, questions)
        if answers.system in found:
            raise DataError(
                f"{path}: more answers of {answers.system}; wanted one file a system in {ANSWERS}/"
            )
        found[answers.system] = answers
    return Study(folder, data, questions, found, key)


def _answered(folder: Path) -> list[Path]:
    """Files of answers; one that is still empty is of a system that has just begun."""
    return [path for path in sorted((folder / ANSWERS).glob("*.jsonl")) if path.stat().st_size]


def slug(name: str) -> str:
    """A name as a file's, another for every name: what no file name can hold is escaped as in an URL."""
    escaped = re.sub(r"[%/\x00-\x1f\x7f]|^\.|^$", lambda found: f"%{ord(found[0] or ' '):02X}", name)
    if len(escaped.encode()) <= LONGEST:
        return escaped
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{escaped.encode()[: LONGEST - 13].decode(errors='ignore')} {digest[:12]}"


def begin_study(folder: Path, data: Path | None) -> tuple[Path, str]:
    """The data set's folder and the study's key; the study is there afterwards. DataError as open_study's."""
    known, key = folder / STUDY, secrets.token_hex(16)
    try:
        if known.is_file():
            told = read_json(known)
            if not isinstance(told.get("data"), str) or not isinstance(told.get("key"), str):
                raise DataError(f"{known}: wanted the texts data and key; remove it, and give --data DIR")
            key = told["key"]
            if data is None:
                return Path(told["data"]), key
            if _questions(data) != (folder / QUESTIONS).read_bytes():
                raise DataError(
                    f"{data / QUESTIONS}: not the questions of {folder}; choose a new folder for them"
                )
        elif data is None:
            raise DataError(f"{folder}: no study is there; name the data set it is about with --data DIR")
        else:
            questions = _questions(data)
            _check_free(folder, data)
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / QUESTIONS, questions)
        replace_file(known, json.dumps({"data": str(data.resolve()), "key": key}).encode())
    except OSError as error:
        raise DataError(f"{error.filename or folder}: no study can be here ({error.strerror})") from None
    return data, key


def _check_free(folder: Path, data: Path) -> None:
    """DataError if something else is in the folder; questions alone are what was left of a beginning."""
    if not folder.is_dir():
        return
    if folder.samefile(data) or any(entry.name != QUESTIONS for entry in folder.iterdir()):
        raise DataError(f"{folder}: not empty, and no study; choose a new folder for the study")


def _questions(data: Path) -> bytes:
    """The file of questions, once it is known to be one."""
    read_questions(data / QUESTIONS)
    return (data / QUESTIONS).read_bytes()


def _files(sources: Sequence[Path]) -> list[Path]:
    """Files of answers at each place: itself, or those of a study, a data set or a plain folder."""
    found: list[Path] = []
    for source in sources:
        folders = [folder for name in (ANSWERS, "answer") if (folder := source / name).is_dir()]
        folder = folders[0] if folders else source
        files = [source] if source.is_file() else sorted(folder.glob("*.jsonl"))
        files = [file for file in files if file.name != QUESTIONS]
        if not files:
            raise DataError(
                f"{source}: no files of answers there; wanted FILE.jsonl or a folder of such files"
            )
        found += files
    return found


def _add(path: Path, folder: Path, questions: Sequence[Question]) -> None:
    answers = read_answers(path, questions)
    place = folder / ANSWERS / f"{slug(answers.system)}.jsonl"
    if place.is_file():
        if place.read_bytes() != path.read_bytes():
            raise DataError(
                f"{path}: other answers of {answers.system} than {place} has; "
                "give them another model_id, or begin a new study"
            )
        return
    place.parent.mkdir(exist_ok=True)
    replace_file(place, path.read_bytes())
