"""Conversations asked of an engine, many at a time; the model's own answers are their history."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from owl_fast.conversation import Conversation
from owl_fast.engine.engine import Engine
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.stream import Stream
from owl_fast.errors import ContextLengthError, OwlError
from owl_fast.prompts import Message


@dataclass(frozen=True)
class Talk:
    """ids: of its questions, in order. messages: makes the user's message to each of them, with the pictures;
    OwlError when one cannot be had. system: replaces the header."""

    ids: Sequence[int]
    messages: Callable[[], Sequence[Message]]
    system: str | None = None


@dataclass(frozen=True)
class Answer:
    """cut: it ended because no more tokens were allowed."""

    id: int
    text: str
    cut: bool


@dataclass(frozen=True)
class Failed:
    """ids: the question that could not be answered, and those that would have followed it."""

    ids: Sequence[int]
    error: str


def ask(
    engine: Engine,
    talks: Iterable[Talk],
    params: SamplingParams,
    *,
    batch: int,
    known: Mapping[int, str] | None = None,
) -> Iterator[Answer | Failed]:
    """Every question's answer as soon as it is there; `batch` conversations are on their way at a time.

    known: answers of earlier, by id; those questions are not asked again, but stand in the history. An
    answer has params.max_tokens at most, or what the context leaves. Closing the iterator ends what runs.
    """
    waiting = (_talk(engine, talk, params, known or {}) for talk in talks)
    running = list(islice(waiting, batch))
    try:
        while running:
            # Each reads one event of its answer: the first makes a step, in which all of them move on.
            for talk in tuple(running):
                try:
                    result = next(talk)
                except StopIteration:
                    running.remove(talk)
                    running += islice(waiting, 1)
                else:
                    if result is not None:
                        yield result
    finally:
        for talk in running:
            talk.close()


def _talk(
    engine: Engine, talk: Talk, params: SamplingParams, known: Mapping[int, str]
) -> Generator[Answer | Failed | None, None, None]:
    """None when there is nothing yet."""
    if all(number in known for number in talk.ids):
        return
    conversation = Conversation(system=talk.system)
    asked = 0
    try:
        for number, message in zip(talk.ids, talk.messages(), strict=True):
            if number in known:
                text = known[number]
            else:
                with _stream(engine, [*conversation.messages, message], params) as stream:
                    yield None  # so that all are on their way before the first step
                    for _ in stream:
                        yield None
                    output = stream.output
                text = output.text
                yield Answer(number, text, output.finish_reason == "length")
            conversation.add(message, text)
            asked += 1
    except OwlError as error:
        yield Failed([number for number in talk.ids[asked:] if number not in known], str(error))


def _stream(engine: Engine, messages: Sequence[Message], params: SamplingParams) -> Stream:
    try:
        return engine.stream(messages, params)
    except ContextLengthError:
        # Less than was allowed may be left, and be enough.
        return engine.stream(messages, replace(params, max_tokens=None))
