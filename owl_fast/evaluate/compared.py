"""What `evaluate caption` and `evaluate vqa` share: data with references, answers.jsonl and scores.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owl_fast.command_line import add_data_flags, data_options
from owl_fast.errors import DataError, ParameterError
from owl_fast.evaluate.asking import EXIT_CODES, Job, add_asking_flags, read_arguments, record_of, run
from owl_fast.files import read_json

if TYPE_CHECKING:
    from owl_fast.engine.sampling import SamplingParams
    from owl_fast.evaluation.references import Question

ANSWERS, SCORES = "answers.jsonl", "scores.json"
Lines = Sequence[Mapping[str, Any]]


def build_parser(
    name: str, description: str, examples: str, prompt: str, tokens: int
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m owl_fast.evaluate {name}",
        description=description,
        epilog=f"{examples}\nAny format of docs/data.md. DIR gets {ANSWERS} and {SCORES}.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, nargs="+", metavar="SPEC", help="files with pictures and references")
    add("--out", required=True, metavar="DIR", help="folder for answers and scores")
    shown = prompt.replace("\n", "\\n")
    add(
        "--prompt",
        default=prompt,
        metavar="TEXT",
        help=f"what is asked; {{question}} stands for the row's question (default: {shown})",
    )
    add("--limit", type=int, metavar="N", help="ask only the first N, for a quick look")
    add_data_flags(parser.add_argument_group("data"), bad_rows=False)
    add_asking_flags(parser, tokens)
    return parser


def arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, SamplingParams]:
    args, params = read_arguments(parser, argv)
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit {args.limit}: wanted 1 or more")
    return args, params


def compare(
    args: argparse.Namespace,
    params: SamplingParams,
    captions: bool,
    marks: Callable[[Sequence[Question]], Callable[[Question, str], Mapping[str, Any]]],
    scores: Callable[[Lines], Mapping[str, Any]],
) -> int:
    """Ask, mark and print. captions: whether rows may be captions. marks: all questions -> the marks of an
    answer to one. scores: of all lines."""
    from owl_fast.evaluation.references import QUESTION, cases
    from owl_fast.training.datasets import ReadOptions, open_datasets

    if not captions and QUESTION not in args.prompt:
        raise ParameterError(f"--prompt {args.prompt!r:.80}: wanted {QUESTION} in it, for what a row asks")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: not a folder; choose one for {ANSWERS} and {SCORES}")
    if out.exists() and any(out.iterdir()) and not (out / ANSWERS).exists():
        raise DataError(f"{out}: not empty, and no {ANSWERS} there; choose a new folder")
    options = ReadOptions(**data_options(args), progress=not args.plain)
    datasets = open_datasets(args.data, options)
    found = cases(datasets, captions, args.limit, not args.plain)
    questions = {question.id: question for case in found for question in case.questions}
    case_of = {question.id: case for case in found for question in case.questions}
    data = {"files": [dataset.describe() for dataset in datasets], "limit": args.limit}
    record = record_of(args, params, out / SCORES, {"prompt": args.prompt}, data)
    mark = marks(list(questions.values()))

    def line(number: int, text: str) -> dict[str, Any]:
        question, case = questions[number], case_of[number]
        return {
            "id": number,
            "question": question.text or args.prompt,
            "pictures_sha256": case.pictures(),
            "references": question.references,
            "answer": text,
            **mark(question, text),
        }

    job = Job(
        out / ANSWERS,
        [case.talk(args.prompt, args.system) for case in found],
        "id",
        line,
        lambda number: f"question {number} ({case_of[number].where})",
        finish=lambda lines: {"scores": scores(lines)},
    )
    code = run(args, params, job, record)
    for name, value in read_json(out / SCORES)["scores"].items():
        print(f"{name:<14} {'-' if value is None else f'{value:.2f}'}")
    return code


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
