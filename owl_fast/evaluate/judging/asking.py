"""Questions to a judge: JSON is wanted in reply, several are under way, every reply is kept when it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from owl_fast.chat.remote import RemoteBackend, RemoteReply
from owl_fast.chat.server import RefusedError, ServerError
from owl_fast.chat.text import safe
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import DataError, OwlError
from owl_fast.evaluation.owleval import Question

MOST_TOKENS = 1024  # some models think before they say it; with the prompt it fits a context of 2048
IN_A_ROW = 5  # requests that fail, one after another: the server is gone, and so would be the others
LONGEST_REPLY, MOST_TRIES = 1 << 16, 1000  # of a reply that is searched: characters, and braces in it
SHOWN = 120  # characters of a reply that cannot be read
REMINDER = "Your reply has to be that JSON object alone, without any other words."

T = TypeVar("T")


@dataclass(frozen=True)
class Case(Generic[T]):
    """read: of a JSON object in the reply what is wanted, or None when it is not there."""

    name: str
    prompt: str
    picture: Path | None
    read: Callable[[Mapping[str, Any]], T | None]


class Judge:
    """Any thread may ask."""

    def __init__(self, backend: RemoteBackend) -> None:
        self.name = safe(backend.name)  # it goes to terminals and files
        self._backend = backend
        self._open: set[RemoteReply] = set()
        self._stopped = False

    def ask(self, case: Case[T]) -> T:
        """DataError when a second try cannot be read either; ServerError."""
        said = ""
        for prompt in (case.prompt, f"{case.prompt}\n\n{REMINDER}"):
            if self._stopped:
                raise ServerError("stopped")
            said = self._reply(prompt, case.picture)
            for found in objects(said):
                if (value := case.read(found)) is not None:
                    return value
        raise DataError(f"the reply cannot be read: {said!r:.{SHOWN}}")

    def _reply(self, prompt: str, picture: Path | None) -> str:
        shown = [] if picture is None else [{"type": "image", "image": str(picture)}]
        message = {"role": "user", "content": [*shown, {"type": "text", "text": prompt}] if shown else prompt}
        params = SamplingParams(temperature=0, max_tokens=MOST_TOKENS)
        with self._backend.reply([message], params, None) as reply:
            self._open.add(reply)
            try:
                if self._stopped:  # while it was sent
                    reply.cancel()
                for _ in reply:
                    pass
            finally:
                self._open.discard(reply)
            return reply.output.text

    def stop(self) -> None:
        """Whatever is under way ends."""
        self._stopped = True
        for reply in list(self._open):
            reply.cancel()


def objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects in a text, whatever stands around them; of a very long one, those it begins with."""
    text, tries = text[:LONGEST_REPLY], 0
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0 and (tries := tries + 1) <= MOST_TRIES:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def transcript(turns: Sequence[Question], texts: Mapping[int, str]) -> str:
    """What was asked and what one system answered, turn by turn."""
    said = [
        f"<question>\n{turn.text.strip()}\n</question>\n<answer>\n{texts.get(turn.id, '').strip()}\n</answer>"
        for turn in turns
    ]
    return "\n".join(said)


def ask_all(
    judge: Judge, cases: Sequence[Case[T]], keep: Callable[[int, T], None], parallel: int
) -> list[str]:
    """keep(number, value): called in this thread as soon as a case is judged. What went wrong, case by case.

    ServerError when one request after another fails; whatever was kept before stays.
    """
    if not cases:
        return []
    troubles: list[str] = []
    failed = 0
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="owl_fast-judge")
    try:
        waiting: dict[Future[T], int] = {pool.submit(judge.ask, case): n for n, case in enumerate(cases)}
        for future in tqdm(as_completed(waiting), total=len(cases), unit="reply", desc=judge.name):
            number = waiting[future]
            try:
                value = future.result()
            except OwlError as error:
                troubles.append(f"{cases[number].name}: {error}")
                gone = isinstance(error, ServerError) and not isinstance(error, RefusedError)
                failed = failed + 1 if gone else 0
                if failed >= min(IN_A_ROW, len(cases)):
                    raise ServerError(
                        f"{error}; {failed} requests in a row; what was judged is kept"
                    ) from None
            else:
                failed = 0
                keep(number, value)
    finally:
        judge.stop()
        pool.shutdown(cancel_futures=True)
    return troubles
