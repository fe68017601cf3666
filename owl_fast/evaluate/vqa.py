"""Short answers against those of people: `python -m owl_fast.evaluate vqa MODEL --data SPEC --out DIR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from owl_fast.command_line import ended
from owl_fast.evaluate import compared

if TYPE_CHECKING:
    import argparse

    from owl_fast.evaluation.references import Question

EXAMPLES = """\
examples:
  python -m owl_fast.evaluate vqa models/mplug-owl-llama-7b --data vqa.jsonl --images val2014 --out vqa
  python -m owl_fast.evaluate vqa MODEL --data vqa.csv --columns image=file --limit 100 --out quick
  python -m owl_fast.evaluate vqa --data questions.jsonl --prompt '{question}' --out nano

Rows with the same picture and question are one question with several references.
"""
# What the field asks models that were not made for short answers.
PROMPT = "{question}\nAnswer the question using a single word or phrase."
MAX_TOKENS = 32


def build_parser() -> argparse.ArgumentParser:
    return compared.build_parser(
        "vqa", "VQA accuracy and exact match, in percent.", EXAMPLES, PROMPT, MAX_TOKENS
    )


def main(argv: Sequence[str] | None = None) -> int:
    args, params = compared.arguments(build_parser(), argv)
    return ended(lambda: compared.compare(args, params, False, _marks, _scores))


def _marks(questions: Sequence[Question]) -> Callable[[Question, str], Mapping[str, Any]]:
    from owl_fast.evaluation.short_answers import exact_match, vqa_accuracy

    return lambda question, text: {
        "accuracy": vqa_accuracy(text, question.references),
        "exact": exact_match(text, question.references),
    }


def _scores(lines: compared.Lines) -> dict[str, float | None]:
    """Over the questions that were answered."""
    percent = {name: compared.mean([100.0 * line[name] for line in lines]) for name in ("accuracy", "exact")}
    return {"VQA accuracy": percent["accuracy"], "exact match": percent["exact"]}
