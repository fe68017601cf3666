"""One answer, shown while it is made, and the line of statistics under it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from owl_fast.chat.backend import Reply
from owl_fast.chat.screen import Screen
from owl_fast.engine.outputs import FinishReason, Output, Timings, Usage
from owl_fast.errors import OwlError


def show_answer(reply: Reply, screen: Screen, stream: bool) -> Output:
    """Show a reply, while it is made or (stream=False) when it is complete.

    Ctrl-C ends it early (finish_reason "cancelled"), an error breaks it off ("error", with the text so far).
    KeyboardInterrupt or the error itself, when nothing was said before.
    """
    text = ""
    try:
        with _stopping(reply):
            for piece in _pieces(reply, screen, stream):
                text += piece
                if stream:
                    screen.answer(piece)
            output = reply.output
    except KeyboardInterrupt:
        output = _broken_off(text, "")
    except OwlError as error:
        if not text:
            raise
        output = _broken_off(text, str(error))
    if output.finish_reason == "cancelled" and not output.text:
        raise KeyboardInterrupt
    if not stream:
        screen.answer(output.text)
    screen.end_answer()
    return output


def statistics(output: Output, max_context: int | None) -> str:
    """The line under an answer; a server may leave out some of the counts."""
    times, usage = output.timings, output.usage
    parts = []
    if usage.completion_tokens:
        parts.append(f"{usage.completion_tokens} tok")
        parts.append(f"{times.predicted_per_second:.1f} tok/s")
    if times.first_token_ms:
        image = f" (image {times.image_ms:.0f} ms)" if usage.image_tokens and times.image_ms else ""
        parts.append(f"first token {times.first_token_ms:.0f} ms{image}")
    if usage.prompt_tokens:
        limit = "" if max_context is None else f"/{max_context}"
        parts.append(f"context {usage.total_tokens}{limit}")
    return " · ".join([*parts, output.finish_reason])


def _pieces(reply: Reply, screen: Screen, stream: bool) -> Iterator[str]:
    """The reply's texts; the screen waits for the first one, or for all."""
    events = iter(reply)
    with screen.waiting():
        texts = [event.text for event in events] if not stream else []
        first = next(events, None)
    if first is not None:
        texts.append(first.text)
    yield from texts
    yield from (event.text for event in events)


@contextlib.contextmanager
def _stopping(reply: Reply) -> Iterator[None]:
    """Ctrl-C asks the reply to end, so that no step breaks off in its middle; a second one does not wait."""
    asked = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        reply.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _broken_off(text: str, error: str) -> Output:
    reason: FinishReason = "error" if error else "cancelled"
    return Output(text, [], [], reason, Usage(0, 0), Timings(), error=error or None)
