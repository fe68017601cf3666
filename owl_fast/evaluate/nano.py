"""owl-nano's held-out questions, task by task: `python -m owl_fast.evaluate nano [MODEL]`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from owl_fast.command_line import ended, loading_options
from owl_fast.errors import DataError, UnsupportedError
from owl_fast.evaluate.asking import add_model_flags, load, place
from owl_fast.settings import add_settings_flags, read_settings

EXAMPLES = """\
examples:
  python -m owl_fast.evaluate nano                               the bundled model, both drawing programs
  python -m owl_fast.evaluate nano --quant int4 --per-task 300 --out int4.json
  python -m owl_fast.evaluate nano nano-run/owl-nano --drawing blind --wrong 3

Every scene holds a combination or number that was never trained. "own" is the program that drew the training
pictures, "blind" another one. The pictures are drawn anew, so it takes the repository, not only the package.
"""
ROOT = Path(__file__).resolve().parents[2]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.evaluate nano",
        description="Ask a model the held-out questions of owl-nano's little world.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_flags(parser)
    add = parser.add_argument
    add("--drawing", choices=["own", "blind", "both"], default="both", help="program (default: both)")
    add("--per-task", type=int, default=100, metavar="N", help="conversations of each task (default: 100)")
    add("--seed", type=int, default=1, metavar="N", help="of the questions and pictures (default: 1)")
    add("--wrong", type=int, default=0, metavar="N", help="wrong answers to print per task (default: 0)")
    add("--out", metavar="FILE.json", help="write the numbers, and how they came about, to a new file")
    add("--plain", action="store_true", help="no progress bar")
    add_settings_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is answered, whatever the marks; 1 when it cannot be, 2 for wrong usage."""
    parser = build_parser()
    args = read_settings(parser, argv)
    if args.per_task < 1:
        parser.error(f"--per-task {args.per_task}: wanted 1 or more")
    return ended(lambda: _run(args))


def recipe() -> tuple[ModuleType, ModuleType]:
    """The recipe's questions and its marks.

    They belong to the recipe, which trains with their like, and not into every wheel; and nothing in the
    package may lean on it, hence no import statement. In a checkout the folder lies beside the package.
    """
    if not (ROOT / "recipes" / "owl_nano").is_dir():
        raise UnsupportedError(
            "owl-nano's questions are drawn by recipes/owl_nano, which an installed package does not have; "
            "run `python -m owl_fast.evaluate nano` in the folder of a checkout"
        )
    if str(ROOT) not in sys.path:  # started as owl-fast, not as python -m
        sys.path.insert(0, str(ROOT))
    try:
        questions = importlib.import_module("recipes.owl_nano.evaluate")
        return questions, importlib.import_module("recipes.owl_nano.scoring")
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{error.name} is missing, with which the words in the pictures are drawn; "
            "pip install -c constraints.txt '.[recipe]'"
        ) from None


def _run(args: argparse.Namespace) -> None:
    import owl_fast
    from owl_fast.engine.sampling import SamplingParams
    from owl_fast.evaluation import record as records
    from owl_fast.evaluation.record import Record

    out = None if args.out is None else _new_file(Path(args.out))
    questions, marks = recipe()
    drawings = list(questions.DRAWINGS) if args.drawing == "both" else [args.drawing]
    bar = not args.plain
    asked = {name: questions.cases(name, args.per_task, args.seed, bar) for name in drawings}
    engine = load(args, max_context=questions.CONTEXT, max_batch=questions.BATCH)
    begin, scores = time.perf_counter(), {}
    for name, cases in asked.items():
        measured = questions.evaluate(engine, name, cases, args.wrong, bar)
        print(f"\n{name}\n{marks.acceptance_table(measured)}", flush=True)
        scores[name] = {task: _score(marks, task, *found) for task, found in measured.items()}
    if out is None:
        return
    record = Record(
        out,
        {
            "model": records.model_settings(args.model, args.adapter, loading_options(args)),
            "prompt": records.prompt_settings(None),
            "decoding": records.decoding_settings(SamplingParams(max_tokens=questions.MAX_TOKENS)),
            "data": {
                "per_task": args.per_task,
                "seed": args.seed,
                "sha256": {name: questions.cases_sha256(cases) for name, cases in asked.items()},
            },
        },
    )
    record.begin(owl_fast.__version__, **place(engine), batch=questions.BATCH)
    count = sum(task["n"] for found in scores.values() for task in found.values())
    record.runs[-1] |= {"answered": count, "seconds": round(time.perf_counter() - begin, 2)}
    record.write({"questions": count, "answered": count, "missing": 0}, scores=scores)
    print(f"\n{out}: {count} answers in {record.runs[-1]['seconds']} s")


def _new_file(path: Path) -> Path:
    """Said before minutes of work: DataError when it is there already, or cannot be."""
    if path.exists():
        raise DataError(f"{path}: is there already; choose a new file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _score(marks: Any, task: str, accuracy: float, count: int) -> dict[str, Any]:
    from owl_fast.evaluation.intervals import wilson

    low, high = wilson(round(accuracy * count), count)
    target = marks.TARGETS[task]
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": count,
        "target": target.accuracy,
        "must": target.must,
    }
