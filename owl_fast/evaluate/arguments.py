"""What the commands about a study share."""

from __future__ import annotations

import argparse
from pathlib import Path

from owl_fast.evaluation.owleval import picture_path
from owl_fast.evaluation.study import Study


def add_study(parser: argparse._ActionsContainer) -> None:
    """STUDY, ANSWERS and --data, as open_study takes them."""
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="folder of the study; begun there if there is none")
    add(
        "answers",
        type=Path,
        nargs="*",
        default=[],  # without it, argparse lists ANSWERS among what is required
        metavar="ANSWERS",
        help="files of answers in OwlEval's format, or folders of them, that are added",
    )
    add("--data", type=Path, metavar="DIR", help="the data set; needed once, when the study is begun")


def check_pictures(study: Study) -> None:
    """DataError when the picture of a question is not there."""
    for question in study.questions:
        if question.image is not None:
            picture_path(study.data, question.image)
