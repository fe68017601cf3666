"""OwlEval (arXiv 2304.14178): its questions, files of answers to them, and what is odd in such files.

A data set is a folder: questions.jsonl and the pictures in cases/. Sets of texts alone have the same form,
their questions name no image (and may call the question "text").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from owl_fast.errors import DataError
from owl_fast.evaluation.json_lines import read_lines

QUESTIONS, PICTURES = "questions.jsonl", "cases"
ABILITIES = {
    "a": "instruction understanding",
    "b": "visual understanding",
    "c": "optical character recognition",
    "d": "knowledge transfer",
    "e": "reasoning",
    "f": "multi-turn dialogue",
}
# When an answer shows them.
MEANINGS = {
    "a": "The answer does what was asked.",
    "b": "Things, places and actions in the picture are seen rightly.",
    "c": "Text in the picture is read rightly.",
    "d": "Knowledge of the world that is not in the picture is put to use.",
    "e": "Conclusions are drawn step by step, and hold together.",
    "f": "What was said before in the conversation is taken up.",
}
SETS = ("single_turn", "multi_turn")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MOST = 1 << 53  # ids: what a browser keeps exactly
# What the published files hold in place of an answer that a system did not give: "cannot be traced back",
# "the model gives the answer up".
FAILED = ("", "无法回溯", "模型放弃回答")


@dataclass(frozen=True)
class Question:
    """abilities: the letters of those an answer takes. sets: of SETS, those it counts in; one that opens a
    conversation counts in both."""

    id: int
    text: str
    image: str | None
    abilities: str
    sets: tuple[str, ...]

    @property
    def multi_turn(self) -> bool:
        return "multi_turn" in self.sets


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, in order; DataError for the first bad line, and for an id that comes twice."""
    if not path.exists():
        raise DataError(
            f"{path.parent}: no {path.name} there; wanted the data set's folder, with it and {PICTURES}/"
        )
    questions: dict[int, Question] = {}
    for where, fields in read_lines(path):
        question = _question(fields, where)
        if question.id in questions:
            raise DataError(
                f"{where}: question_id {question.id} stands there twice; wanted one question each"
            )
        questions[question.id] = question
    if not questions:
        raise DataError(f"{path}: no questions; wanted lines of question_id, question and perhaps image")
    return list(questions.values())


def _question(fields: Mapping[str, Any], where: str) -> Question:
    image, sets = fields.get("image"), fields.get("category", ["single_turn"])
    abilities = fields.get("ability", "")
    if not (image is None or _is_file_name(image)):
        raise DataError(f"{where}: image is {image!r:.80}; wanted the name of a picture in {PICTURES}/")
    if isinstance(sets, str):  # Vicuna's questions have a topic there
        sets = ["single_turn"]
    if not isinstance(sets, list) or not sets or not all(name in SETS for name in sets):
        raise DataError(f"{where}: category is {sets!r:.80}; wanted a list of {' and '.join(SETS)}")
    letters = [letter.strip() for letter in abilities.split(",")] if isinstance(abilities, str) else [""]
    if abilities != "" and not all(letter in ABILITIES for letter in letters):
        raise DataError(f"{where}: ability is {abilities!r:.80}; wanted letters as in a,b,e")
    number = _id(fields, where)
    if not 0 <= number < MOST:
        raise DataError(f"{where}: question_id is {number!r:.80}; wanted one of 0 to {MOST - 1}")
    return Question(number, _text(fields, where), image, "".join(letters), tuple(sets))


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or len(name) > 100 or not name.isprintable():
        return False
    return PurePosixPath(name).name == name


def _id(fields: Mapping[str, Any], where: str) -> int:
    number = fields.get("question_id")
    if type(number) is not int:
        raise DataError(f"{where}: question_id is {number!r:.80}; wanted a whole number")
    return number


def _text(fields: Mapping[str, Any], where: str) -> str:
    text = fields.get("question", fields.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: question is {text!r:.80}; wanted a text")
    return _utf8(text)


def _utf8(text: str) -> str:
    """Without halves of characters (lone surrogates): JSON can tell them, files and prompts hold none."""
    return text.encode("utf-8", "replace").decode()


def conversations(questions: Sequence[Question]) -> list[list[Question]]:
    """Multi-turn questions of one image that follow each other are the turns of one conversation."""
    found: list[list[Question]] = []
    for question in questions:
        before = found[-1][-1] if found else None
        if (
            before is not None
            and question.multi_turn
            and before.multi_turn
            and question.image == before.image
        ):
            found[-1].append(question)
        else:
            found.append([question])
    return found


def picture_path(data: Path, name: str) -> Path:
    """Of a picture of the set; where only its ending is another, that file. DataError when there is none."""
    folder = data / PICTURES
    for candidate in (name, *(PurePosixPath(name).stem + ending for ending in ENDINGS)):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(f"{folder}: no picture {name}; wanted the data set's folder, with {PICTURES}/ in it")


@dataclass(frozen=True)
class Answers:
    """What one system answered. texts: by question id; of several to one question the first.

    Ids of what is odd: doubled (answered again), unknown (no such question), renamed (the picture has another
    ending here), other_picture (it names another picture), reworded (the question stands there in other
    words). An answer that is odd counts all the same, an unknown one nowhere.
    """

    system: str
    texts: Mapping[int, str]
    doubled: Sequence[int] = ()
    unknown: Sequence[int] = ()
    renamed: Sequence[int] = ()
    other_picture: Sequence[int] = ()
    reworded: Sequence[int] = ()

    @property
    def failed(self) -> list[int]:
        """Questions for which the file says that there is no answer (FAILED)."""
        return [number for number, text in self.texts.items() if text.strip(" \n.。") in FAILED]

    def digest(self, number: int) -> str:
        """Tells one text of an answer from another."""
        return hashlib.sha256(self.texts[number].encode()).hexdigest()[:16]

    def missing(self, questions: Sequence[Question]) -> list[int]:
        return [question.id for question in questions if question.id not in self.texts]


@dataclass
class _Odd:
    doubled: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    renamed: list[int] = field(default_factory=list)
    other_picture: list[int] = field(default_factory=list)
    reworded: list[int] = field(default_factory=list)


def read_answers(path: Path, questions: Sequence[Question]) -> Answers:
    """One system's file: lines of question_id, answer (or text), and perhaps image, question and model_id.

    The system is called as model_id says, or as the file. DataError: a bad line, several systems in a file,
    not a single answer to these questions.
    """
    known = {question.id: question for question in questions}
    texts: dict[int, str] = {}
    odd, systems = _Odd(), dict[str, str]()
    for where, fields in read_lines(path):
        number, text = _id(fields, where), fields.get("answer", fields.get("text"))
        if not isinstance(text, str):
            raise DataError(f"{where}: answer is {text!r:.80}; wanted a text")
        systems.setdefault(_utf8(str(fields.get("model_id") or path.stem.removesuffix("_answer"))), where)
        if number not in known:
            odd.unknown.append(number)
        elif number in texts:
            odd.doubled.append(number)
        else:
            texts[number] = _utf8(text)
            _compare(fields, known[number], odd)
    if len(systems) > 1:
        (one, _), (other, where) = list(systems.items())[:2]
        raise DataError(f"{where}: model_id is {other}, and {one} before; wanted one system in a file")
    if not texts:
        raise DataError(f"{path}: no answer to any of the {len(questions)} questions; is it of another set?")
    return Answers(next(iter(systems)), texts, **vars(odd))


def _compare(fields: Mapping[str, Any], question: Question, odd: _Odd) -> None:
    image, text = fields.get("image"), fields.get("question")
    if isinstance(image, str) and question.image is not None and image != question.image:
        same = PurePosixPath(image).stem == PurePosixPath(question.image).stem
        (odd.renamed if same else odd.other_picture).append(question.id)
    if isinstance(text, str) and _words(text) != _words(question.text):
        odd.reworded.append(question.id)


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
