"""Answers to OwlEval's questions: `python -m owl_fast.evaluate owleval MODEL --data DIR --out STUDY`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owl_fast.command_line import ended
from owl_fast.evaluate.asking import EXIT_CODES, Job, add_asking_flags, read_arguments, record_of, run

if TYPE_CHECKING:
    from owl_fast.engine.sampling import SamplingParams
    from owl_fast.evaluation.answering import Talk
    from owl_fast.evaluation.owleval import Question

EXAMPLES = f"""\
examples:
  python -m owl_fast.evaluate owleval models/mplug-owl-llama-7b --data owleval --out study
  python -m owl_fast.evaluate owleval models/mplug-owl-llama-7b --quant int4 --data owleval --out study
  python -m owl_fast.evaluate owleval MODEL --adapter runs/mine/final --name mine --data owleval --out study
  python -m owl_fast.evaluate owleval MODEL --data owleval --out study --temperature 0.7 --top-p 0.9 --seed 1
  python -m owl_fast.evaluate owleval rate --help      then rate them, and `report` draws the tables

DIR holds questions.jsonl and cases/ with the pictures. Answers go to STUDY/answers/NAME.jsonl, in the data
set's own format, and how they were made to STUDY/records/NAME.json.

{EXIT_CODES}"""
MAX_TOKENS = 512


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.evaluate owleval",
        description="Answer OwlEval's questions, those of a conversation in order.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--out", required=True, metavar="STUDY", help="folder of the study, begun if new")
    parser.add_argument("--name", metavar="NAME", help="of the system (default: of the model as it is held)")
    add_asking_flags(parser, MAX_TOKENS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, params = read_arguments(build_parser(), argv)
    return ended(lambda: _run(args, params))


def _run(args: argparse.Namespace, params: SamplingParams) -> int:
    from owl_fast.evaluation.owleval import QUESTIONS, conversations, read_questions
    from owl_fast.evaluation.record import file_sha256
    from owl_fast.evaluation.study import ANSWERS, RECORDS, begin_study, slug

    data, out = Path(args.data), Path(args.out)
    questions = read_questions(data / QUESTIONS)
    name = args.name or _name(args)
    by_id = {question.id: question for question in questions}
    pictures = {image: _sha256(data, image) for image in dict.fromkeys(_images(questions))}
    asked = {"questions": file_sha256(data / QUESTIONS), "pictures": pictures}
    record = record_of(args, params, out / RECORDS / f"{slug(name)}.json", {}, asked)
    begin_study(out, data)

    def free(known: Collection[int]) -> list[str]:
        """A picture that nobody has answered a question on may have been mended."""
        used = {by_id[number].image for number in known if number in by_id}
        return [f"data.pictures.{image}" for image in pictures if image not in used]

    job = Job(
        out / ANSWERS / f"{slug(name)}.jsonl",
        [_talk(data, turns, args.system) for turns in conversations(questions)],
        "question_id",
        lambda number, text: _line(by_id[number], text, name),
        lambda number: f"question {number}",
        free,
        lambda lines: {"system": name},
    )
    return run(args, params, job, record)


def _name(args: argparse.Namespace) -> str:
    from owl_fast.summary import model_name

    adapter = [model_name(args.adapter)] if args.adapter else []
    held = [args.quant] if args.quant in ("int8", "int4") else []
    return " ".join([model_name(args.model), *adapter, *held])


def _images(questions: Sequence[Question]) -> list[str]:
    return [question.image for question in questions if question.image is not None]


def _sha256(data: Path, image: str) -> str | None:
    from owl_fast.errors import DataError
    from owl_fast.evaluation.owleval import picture_path
    from owl_fast.evaluation.record import file_sha256

    try:
        return file_sha256(picture_path(data, image))
    except DataError:
        return None  # said when it is asked about; the others can be answered


def _talk(data: Path, turns: Sequence[Question], system: str | None) -> Talk:
    from owl_fast.conversation import user_message
    from owl_fast.evaluation.answering import Talk
    from owl_fast.evaluation.owleval import picture_path

    def messages() -> list[dict[str, Any]]:
        image = turns[0].image
        pictures = [] if image is None else [picture_path(data, image)]
        return [user_message(turn.text, () if number else pictures) for number, turn in enumerate(turns)]

    return Talk([turn.id for turn in turns], messages, system)


def _line(question: Question, text: str, name: str) -> Mapping[str, Any]:
    image = {} if question.image is None else {"image": question.image}
    return {
        **image,
        "question_id": question.id,
        "question": question.text,
        "answer": text,
        "model_id": name,
    }
