"""What the evaluations that ask a model share: their flags, and a run that keeps every answer as it comes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owl_fast.chat.sampling import add_sampling_flags, from_flags
from owl_fast.command_line import add_loading_flags, loading_options, progress_bar
from owl_fast.errors import DataError, OwlError
from owl_fast.settings import add_settings_flags, read_settings

if TYPE_CHECKING:
    from owl_fast.engine.engine import Engine
    from owl_fast.engine.sampling import SamplingParams
    from owl_fast.evaluation.answering import Talk
    from owl_fast.evaluation.json_lines import LineFile
    from owl_fast.evaluation.record import Record

EXIT_CODES = """\
exit codes: 0 all questions are answered, 1 something is wrong or answers are missing, 2 wrong usage,
3 disk, 6 another process writes there, 130 after Ctrl-C. The same command goes on with what is missing.
"""


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL and how it is held; what every evaluation has."""
    group = parser.add_argument_group("model")
    add_loading_flags(group)
    group.add_argument("--adapter", metavar="DIR", help="LoRA adapter folder")


def add_asking_flags(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """max_tokens: of an answer, unless told."""
    add_model_flags(parser)
    group = parser.add_argument_group("answers")
    group.add_argument("-s", "--system", metavar="TEXT", help="replaces the header of the conversation")
    add_sampling_flags(group, max_tokens=max_tokens, seed=0)
    group.add_argument(
        "--batch", type=int, default=8, metavar="N", help="conversations at a time (default: 8)"
    )
    parser.add_argument("--plain", action="store_true", help="no progress bar")
    add_settings_flags(parser)


def read_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, SamplingParams]:
    """Leaves with 2 for wrong usage, values out of range included."""
    args = read_settings(parser, argv)
    if args.batch < 1:
        parser.error(f"--batch {args.batch}: wanted 1 or more")
    try:
        return args, from_flags(vars(args))
    except OwlError as error:
        parser.error(str(error))


def load(args: argparse.Namespace, **options: Any) -> Engine:
    """The engine of the flags, with a bar; one line says what it is. options: of Engine.from_pretrained."""
    from owl_fast import native
    from owl_fast.engine.engine import Engine
    from owl_fast.summary import model_name, plan_text

    begin = time.perf_counter()
    with progress_bar(not args.plain, desc="loading", leave=False) as progress:
        given = {**loading_options(args), "adapter": args.adapter, "progress": progress, **options}
        engine = Engine.from_pretrained(args.model, **given)
    if engine.model.device.type == "cpu":
        native.library()  # says now when it is missing
    said = plan_text(model_name(args.model), engine, time.perf_counter() - begin)
    print(f"ready: {said}", file=sys.stderr)
    return engine


def place(engine: Engine) -> dict[str, str]:
    """What an engine runs on, and as what it holds the weights, for a record."""
    from owl_fast import machine
    from owl_fast.summary import said_precision

    model = engine.model
    return {
        "device": machine.device_name(model.device),
        "precision": said_precision(model.dtype, model.config.quantization),
    }


def record_of(
    args: argparse.Namespace, params: SamplingParams, path: Path, prompt: Mapping[str, Any], data: Any
) -> Record:
    """prompt: beside the template. data: hashes of what is asked."""
    from owl_fast.evaluation import record

    settings = {
        "model": record.model_settings(args.model, args.adapter, loading_options(args)),
        "prompt": {**record.prompt_settings(args.system), **prompt},
        "decoding": record.decoding_settings(params),
        "data": data,
    }
    return record.Record(path, settings)


@dataclass(frozen=True)
class Job:
    """What is asked, and how answers are written.

    answers     the file they are added to
    number      the name under which a line holds its question's id
    line        of an answer to a question, as it stands in the file
    called      a question, for messages
    free        names of settings that may have changed, given the ids of questions answered before
    finish      all lines in order -> what stands in the record beside
    """

    answers: Path
    talks: Sequence[Talk]
    number: str
    line: Callable[[int, str], Mapping[str, Any]]
    called: Callable[[int], str]
    free: Callable[[Collection[int]], Collection[str]] = lambda known: ()
    finish: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] = lambda lines: {}

    @property
    def ids(self) -> list[int]:
        return [number for talk in self.talks for number in talk.ids]


def run(args: argparse.Namespace, params: SamplingParams, job: Job, record: Record) -> int:
    """Ask what has no answer yet; 0 when all have one then, else 1.

    Each answer is on disk before the next is waited for. In the end they stand in the questions' order, as
    if nothing had come between.
    """
    from owl_fast.evaluation.json_lines import LineFile

    with LineFile(job.answers) as file:
        if file.lines and not record.found:
            raise DataError(
                f"{job.answers}: answers are there, and no {record.path.name} that says how they were made; "
                "choose another --name or --out"
            )
        numbers = [line.get(job.number) for _, line in file.lines]
        record.check(job.free([number for number in numbers if isinstance(number, int)]))
        lines = _kept(file, job)
        left = len(job.ids) - len(lines)
        if left:
            _ask(args, params, job, record, file, lines)
        ordered = [lines[number] for number in job.ids if number in lines]
        if ordered != [line for _, line in file.lines]:
            file.rewrite(ordered)
        record.write(_counts(job, lines), **job.finish(ordered))
    return _report(job, record, lines, left)


def _kept(file: LineFile, job: Job) -> dict[int, Mapping[str, Any]]:
    """The lines of earlier runs by question; DataError for one that no run on these questions has written."""
    known = set(job.ids)
    lines: dict[int, Mapping[str, Any]] = {}
    for where, line in file.lines:
        number, text = line.get(job.number), line.get("answer")
        if type(number) is not int or number not in known or number in lines or not isinstance(text, str):
            raise DataError(f"{where}: no answer to one of these questions; choose another --name or --out")
        wanted = job.line(number, text)
        if changed := [name for name, value in wanted.items() if line.get(name) != value]:
            raise DataError(
                f"{where}: its {' and '.join(changed)} is not that of {job.called(number)} now; "
                "ask about the data as it was, or choose another --name or --out"
            )
        lines[number] = line
    return lines


def _ask(
    args: argparse.Namespace,
    params: SamplingParams,
    job: Job,
    record: Record,
    file: LineFile,
    lines: dict[int, Mapping[str, Any]],
) -> None:
    """Add to the file and to lines."""
    from tqdm import tqdm

    import owl_fast
    from owl_fast.evaluation.answering import Failed, ask

    engine = load(args, max_batch=max(args.batch, params.beams))
    record.begin(owl_fast.__version__, **place(engine), batch=args.batch)
    record.write(_counts(job, lines))
    known = {number: str(line["answer"]) for number, line in lines.items()}
    run, begin = record.runs[-1], time.perf_counter()
    try:
        with tqdm(total=len(job.ids), initial=len(lines), unit="question", disable=args.plain) as bar:
            for result in ask(engine, job.talks, params, batch=args.batch, known=known):
                if isinstance(result, Failed):
                    _say_failed(job, result)
                    continue
                lines[result.id] = job.line(result.id, result.text)
                file.append(lines[result.id])
                run["answered"] += 1
                run["cut"] += result.cut
                bar.update()
    except KeyboardInterrupt:
        print(f"\nstopped; {len(lines)} answers are kept, the same command goes on", file=sys.stderr)
        raise
    finally:
        run["seconds"] = round(time.perf_counter() - begin, 2)
        record.write(_counts(job, lines))


def _say_failed(job: Job, failed: Any) -> None:
    from tqdm import tqdm

    first, rest = failed.ids[0], failed.ids[1:]
    more = f"; not asked after it: {', '.join(map(job.called, rest))}" if rest else ""
    tqdm.write(f"error: {job.called(first)}: {failed.error}{more}", file=sys.stderr)


def _counts(job: Job, lines: Mapping[int, Any]) -> dict[str, int]:
    asked = len(job.ids)
    return {"questions": asked, "answered": len(lines), "missing": asked - len(lines)}


def _report(job: Job, record: Record, lines: Mapping[int, Any], asked: int) -> int:
    missing = [number for number in job.ids if number not in lines]
    if not asked:
        print(f"{job.answers}: complete, {len(lines)} answers; nothing to do")
        return 0
    run = record.runs[-1]
    said = f"{job.answers}: {len(lines)} of {len(job.ids)} answers, {run['answered']} in {run['seconds']} s"
    print(said + (f"; {run['cut']} cut off where no more tokens were allowed" if run["cut"] else ""))
    if missing:
        listed = ", ".join(map(job.called, missing[:8])) + (", ..." if len(missing) > 8 else "")
        print(f"missing: {listed}; the same command asks again", file=sys.stderr)
    return 1 if missing else 0
