"""Every bound of the server, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds, unless said otherwise."""

    # What a request may say.
    body: int = 20 << 20
    json_depth: int = 32
    json_tokens: int = 20_000  # strings, brackets and commas
    messages: int = 128
    text: int = 256 << 10  # of all messages together, encoded
    images: int = 4
    answers: int = 4  # n
    logprobs: int = 20
    stops: int = 4
    stop_characters: int = 256
    biases: int = 300
    stop_ids: int = 64
    error: int = 1 << 10  # of an error reply

    # How a connection may behave.
    connections: int = 256
    headers: int = 16 << 10
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    body_rate: int = 8 << 10  # bytes a second, on average, after the first seconds:
    body_grace: float = 5.0
    keep_alive: float = 5.0
    stall: float = 30.0  # a reader that takes nothing for so long is cut off
    comment: float = 15.0  # between comments in a stream that says nothing

    # What a picture may cost.
    picture_cpu: float = 2.0
    picture_memory: int = 1 << 30  # address space of a worker, beyond what it has before its first picture
    picture_seconds: float = 20.0  # on the clock, for a worker that stands still
    pictures_waiting: int = 64  # for a worker
    fetches: int = 32  # pictures on their way from other hosts and from the disk

    # What waits.
    waiting: int = 64  # requests
    waiting_tokens: int = 64_000  # positions of their prompts
    wait: float = 30.0
    request: float = 120.0

    # The step loop and the end.
    step: float = 2.0  # that a step takes at most, about
    heartbeat: float = 5.0  # the model is silent for so long: not ready
    hang: float = 8.0  # and for so long: whoever waits is told, and the process ends
    frozen: float = 30.0  # nothing at all goes on in the process
    drain: float = 20.0  # for answers under way, then
    farewell: float = 3.0  # for the application to end them
    log_line: int = 2 << 10
