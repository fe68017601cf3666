"""`python -m owl_fast.evaluate owleval rate`: people rate answers, blind, in a local web page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from owl_fast.command_line import ended
from owl_fast.errors import DataError
from owl_fast.evaluate.arguments import add_study, check_pictures
from owl_fast.evaluation.study import open_study
from owl_fast.serving.listening import cannot_listen, check_packages, url_of

HOST = "127.0.0.1"
EXAMPLES = """\
examples:
  python -m owl_fast.evaluate owleval rate study owleval/answer --data owleval   begin
  python -m owl_fast.evaluate owleval rate study more/mine.jsonl                 with one more system
  python -m owl_fast.evaluate owleval rate study --rater ann --port 0

Ratings lie in STUDY/ratings, one file a rater, and are there as soon as the page shows them.
exit codes: 0 stopped with Ctrl-C, 1 error, 2 wrong usage
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.evaluate owleval rate",
        description="Rate answers without knowing whose they are: A, B, C or D, and the abilities they show.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study(parser)
    parser.add_argument("--rater", metavar="NAME", help="who rates (default: the page asks)")
    parser.add_argument(
        "--port", type=int, default=8010, metavar="N", help="on 127.0.0.1; 0: any free one (default: 8010)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """What the epilog of --help says of exit codes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.port < 1 << 16:
        parser.error(f"--port {args.port}: wanted 0 (any free one) to 65535")
    return ended(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    check_packages()
    from owl_fast.evaluate.rating.app import make_app
    from owl_fast.evaluate.rating.book import Book, check_name
    from owl_fast.evaluate.rating.sheets import Sheets
    from owl_fast.serving.limits import Limits
    from owl_fast.serving.server import run

    rater = None if args.rater is None else check_name(args.rater)
    study = open_study(args.study, args.answers, args.data)
    if not study.answers:
        raise DataError(f"{study.folder}: no answers yet; name files of them behind the study")
    check_pictures(study)
    book, limits = Book(study), Limits()
    book.raters()  # what is wrong with their files is said before anybody opens the page
    if rater is not None:
        book.of(rater)
    try:
        code = run(make_app(study, book, limits, rater), HOST, args.port, limits, started=_announce)
    except OSError as error:
        raise cannot_listen(HOST, args.port, error) from None
    total = Sheets(study).answers
    for name, path in book.changed.items():
        graded = sum(bool(rating.grade) for rating in book.of(name).values())
        print(f"{name}: {graded} of {total} answers rated, in {path}", file=sys.stderr)
    if not book.changed:
        print(f"nothing was rated; go on with the same command, study {study.folder}", file=sys.stderr)
    return code


def _announce(host: str, port: int) -> None:
    print(f"rate at {url_of(host, port)} (Ctrl-C ends)", flush=True)
