"""Captions against references: `python -m owl_fast.evaluate caption MODEL --data SPEC --out DIR`."""

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
  python -m owl_fast.evaluate caption MODEL --data captions_val2014.json --images val2014 --out coco
  python -m owl_fast.evaluate caption MODEL --data mine.csv --columns caption=title --limit 100 --out quick
  python -m owl_fast.evaluate caption MODEL --data '{0..3}.tar' --prompt "What is this?" --out tars

Rows with the same picture are one picture with several references. Rows that ask something are asked that.
"""
PROMPT = "Describe this image in one short sentence."
MAX_TOKENS = 64


def build_parser() -> argparse.ArgumentParser:
    return compared.build_parser(
        "caption", "BLEU, in percent, and CIDEr-D times 100.", EXAMPLES, PROMPT, MAX_TOKENS
    )


def main(argv: Sequence[str] | None = None) -> int:
    args, params = compared.arguments(build_parser(), argv)
    return ended(lambda: compared.compare(args, params, True, _marks, _scores))


def _marks(questions: Sequence[Question]) -> Callable[[Question, str], Mapping[str, Any]]:
    from owl_fast.evaluation.captions import scorer, words
    from owl_fast.evaluation.cider import CiderD

    scorer()  # missing is said before hours of work
    cider = CiderD([[words(reference) for reference in question.references] for question in questions])
    places = {question.id: place for place, question in enumerate(questions)}
    return lambda question, text: {"cider": 100 * cider.score(places[question.id], words(text))}


def _scores(lines: compared.Lines) -> dict[str, float | None]:
    """Over the pictures that have a caption."""
    from owl_fast.evaluation.captions import bleu

    said, wanted = [line["answer"] for line in lines], [line["references"] for line in lines]
    found: dict[str, float | None] = {**bleu(said, wanted)} if lines else {}
    return {**found, "CIDEr-D": compared.mean([line["cider"] for line in lines])}
