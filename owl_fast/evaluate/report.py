"""`python -m owl_fast.evaluate owleval report STUDY`: the paper's figures and tables."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from owl_fast.command_line import ended
from owl_fast.errors import DataError, DiskError
from owl_fast.evaluation.ratings import GRADES, read_pairs, read_ratings
from owl_fast.evaluation.report_page import report_page
from owl_fast.evaluation.study import RECORDS, STUDY, Study, open_study, slug
from owl_fast.evaluation.tables import pairs_text, report
from owl_fast.files import is_there, read_json, sync

EXAMPLES = """\
examples:
  python -m owl_fast.evaluate owleval report study
  python -m owl_fast.evaluate owleval report study --title "Owl against five others, May"
  python -m owl_fast.evaluate owleval report study --no-texts --note "Rated by two colleagues."

Writes STUDY/report.html, which opens without a network, and STUDY/report.json with every number in it.
What counts how, and the keys of report.json: docs/evaluation.md.
"""
NAMES = ("report.json", "report.html")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.evaluate owleval report",
        description="The paper's figures and tables (arXiv 2304.14178) from a study's answers and ratings.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="folder with answers, ratings, pairs and records")
    add("--title", metavar="TEXT", help="of the page (default: OwlEval and the folder's name)")
    add("--note", metavar="TEXT", default="", help="stands above the numbers")
    add("--no-texts", action="store_true", help="leave the texts of questions and answers out of the page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1: bad input; 2: wrong usage; 3: the disk is full; 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    return ended(lambda: write_report(args.study, args.title, args.note, texts=not args.no_texts))


def write_report(folder: Path, title: str | None = None, note: str = "", texts: bool = True) -> None:
    """report.json and report.html in a study's folder, both or neither; prints the main table."""
    if not (folder / STUDY).is_file():
        raise DataError(
            f"{folder}: no study is there; wanted a folder that evaluate owleval, rate or judge has made"
        )
    study, ratings, pairs = open_study(folder), read_ratings(folder), read_pairs(folder)
    numbers = {
        "title": title or f"OwlEval: {folder.resolve().name}",
        "note": note,
        **report(study, ratings, pairs, _records(study)),
    }
    page = report_page(numbers, study, ratings, texts)
    contents = (json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", page)
    _write({folder / name: content for name, content in zip(NAMES, contents, strict=True)})
    print(_main_table(numbers))
    print(*(folder / name for name in NAMES), sep="\n")


def _records(study: Study) -> dict[str, dict[str, Any]]:
    paths = {name: study.folder / RECORDS / f"{slug(name)}.json" for name in study.answers}
    return {name: read_json(path) for name, path in paths.items() if is_there(path)}


def _write(contents: Mapping[Path, str]) -> None:
    """Each beside its place, renamed when all are on the disk; DiskError, and what was there stays."""
    beside = {path: path.with_name(f".{path.name}.{uuid4().hex}") for path in contents}
    try:
        if folders := [path for path in contents if path.is_dir()]:
            raise IsADirectoryError(0, f"{folders[0].name} is a folder")
        for path, content in contents.items():
            beside[path].write_bytes(content.encode("utf-8", "replace"))
            sync(beside[path])
        for path, new in beside.items():
            os.replace(new, path)
    except OSError as error:
        raise DiskError(
            f"{next(iter(contents)).parent}: no report can be written ({error.strerror})"
        ) from None
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)


def _main_table(numbers: Mapping[str, Any]) -> str:
    """Grades by system, all questions, a table for people and one for each model; and scores of pairs."""
    lines = []
    width = max([len("system"), *map(len, numbers["systems"])])
    for group in numbers["groups"]:
        lines.append("rated by people" if group["model"] is None else f"rated by the model {group['model']}")
        lines.append(f"{'system':<{width}}  {'    '.join(GRADES):>17}  ratings  A or B  failed answers")
        for name, of_it in group["all"]["grades"]["all"].items():
            counts = "".join(f"{of_it[grade]:5}" for grade in GRADES)
            good, failed = of_it["A"] + of_it["B"], len(numbers["systems"][name]["failed"])
            share = f"{good / of_it['ratings']:.0%}" if of_it["ratings"] else "-"
            lines.append(f"{name:<{width}} {counts}  {of_it['ratings']:7}  {share:>6}  {failed:14}")
        lines.append("")
    for beside in numbers["pairs"]:
        lines.append(f"scored by the model {beside['judge']}")
        lines += [pairs_text(beside["reference"], beside["all"]), ""]
    none = "no ratings yet: the report shows the answers and what is odd in them"
    return "\n".join(lines) if lines else none if numbers["systems"] else "no answers and no ratings yet"
