"""`python -m owl_fast.evaluate owleval judge`: a model behind an OpenAI-compatible server rates answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from owl_fast.command_line import ended
from owl_fast.errors import DataError
from owl_fast.evaluate.arguments import add_study, check_pictures
from owl_fast.evaluation.study import open_study

if TYPE_CHECKING:
    from owl_fast.evaluate.judging.kept import Judged

EXAMPLES = """\
examples:
  python -m owl_fast.evaluate owleval judge study --url http://127.0.0.1:8000/v1
  python -m owl_fast.evaluate owleval judge study --url https://HOST/v1 --model NAME --api-key-file key.txt
  python -m owl_fast.evaluate owleval judge study --url http://127.0.0.1:8000/v1 --no-pictures
  python -m owl_fast.evaluate owleval judge vicuna answers --data vicuna-questions \\
      --url http://127.0.0.1:8000/v1 --reference gpt-3.5      answers to texts, in pairs

Without --reference, grades and abilities go to STUDY/ratings, marked as a model's; with it, scores go to
STUDY/pairs. What is there already is not asked again.
exit codes: 0 all judged, 1 error or replies that could not be read, 2 wrong usage, 130 Ctrl-C
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.evaluate owleval judge",
        description="Have a model rate answers by the rubric that people rate by, or score them in pairs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study(parser)
    add = parser.add_argument
    add("--url", required=True, metavar="URL", help="of the judge's server, as in http://HOST:PORT/v1")
    add("--model", metavar="NAME", help="the judge's name there (default: the first it lists)")
    add(
        "--api-key-file",
        metavar="FILE",
        help="key for --url (default: the environment's OWL_API_KEY, if set)",
    )
    add(
        "--reference", metavar="SYSTEM", help="score the others' answers to questions of words beside its own"
    )
    add("--no-pictures", action="store_true", help="send none, to a judge that cannot see")
    add("--parallel", type=int, default=4, metavar="N", help="requests under way at once (default: 4)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """What the epilog of --help says of exit codes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 1 <= args.parallel <= 64:
        parser.error(f"--parallel {args.parallel}: wanted 1 to 64")
    return ended(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from owl_fast.chat.remote import RemoteBackend
    from owl_fast.chat.server import Server, api_key
    from owl_fast.evaluate.judging.asking import Judge
    from owl_fast.evaluate.judging.grades import grade_all
    from owl_fast.evaluate.judging.pairs import score_all
    from owl_fast.evaluation.tables import pair_scores, pairs_text

    server = Server(args.url, api_key(args.api_key_file))
    study = open_study(args.study, args.answers, args.data)
    if not study.answers:
        raise DataError(f"{study.folder}: no answers yet; name files of them behind the study")
    judge = Judge(RemoteBackend(server, args.model))
    if args.reference is not None:
        judged, pairs = score_all(judge, study, args.reference, args.parallel)
        systems = sorted({pair.system for pair in pairs})
        scores = {name: pair_scores([pair for pair in pairs if pair.system == name]) for name in systems}
        print(pairs_text(args.reference, scores))
    else:
        if not args.no_pictures:
            check_pictures(study)
        judged = grade_all(judge, study, args.parallel, not args.no_pictures)
    return _end(judge.name, judged)


def _end(judge: str, judged: Judged) -> int:
    if not judged.new and not judged.troubles:
        print(f"{judged.path}: complete, {judged.all} judged; nothing to do")
        return 0
    where = f", in {judged.path}" if judged.all else ""
    print(f"{judge}: {judged.new} judged now{where}", file=sys.stderr)
    for trouble in judged.troubles:
        print(f"  {trouble}", file=sys.stderr)
    if judged.troubles:
        print(f"{len(judged.troubles)} not judged; the same command asks for them again", file=sys.stderr)
    return 1 if judged.troubles else 0
