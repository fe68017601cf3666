"""The one exception tree: every error a user can cause is an OwlError.

Messages say what came, what was wanted and what to do about it.
"""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """What is wrong with a training record; the kinds that are counted."""

    MALFORMED = "malformed"
    NOT_JSON = "not JSON"
    WRONG_KEYS = "wrong keys"
    WRONG_ROLES = "wrong roles"
    PICTURE_COUNT = "pictures and <image> differ"
    MISSING_PICTURE = "missing picture"
    BROKEN_PICTURE = "broken picture"
    OUTSIDE_ROOT = "path outside the data root"
    NO_ANSWER = "no answer"
    ALL_MASKED = "all labels masked"
    TOO_LONG = "answer longer than the context"

    def __str__(self) -> str:
        return self.value


class OwlError(Exception):
    """Base of all errors owl_fast raises on purpose."""


class CheckpointError(OwlError, ValueError):
    """A model folder or weight file is missing something, broken, or does not fit its config."""


class ImageError(OwlError, ValueError):
    """A picture cannot be read: unknown input kind, broken bytes, or larger than the limits."""


class PromptError(OwlError, ValueError):
    """A prompt or message list is malformed, or its pictures and placeholders do not match."""


class ParameterError(OwlError, ValueError):
    """An option is out of range or names something that is not there, such as an adapter."""


class ContextLengthError(PromptError):
    """A prompt (plus the tokens asked for) does not fit the context."""


class DataError(OwlError, ValueError):
    """A training record, conversation file or other data file is malformed, missing or unreadable.

    reason: of a training record, the kind it is counted under.
    """

    def __init__(self, message: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(message)
        self.reason = reason


class TooManyBadRows(DataError):
    """More training records had to be left out than the cap allows."""


class UnsupportedError(OwlError, ValueError):
    """A valid request for something this build does not do."""


class DiskError(OwlError):
    """The disk of a run's folder is full or cannot be written: a snapshot is missing."""


class DivergedError(OwlError):
    """Training gives NaN or infinity, and going on would not mend it."""


class LockedError(OwlError):
    """Another process works in this run folder."""


class StoppedError(OwlError):
    """A signal ended the run in good order. signal: its number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class ReaderError(OwlError):
    """A process that reads training data died or hangs."""


class RankError(OwlError):
    """Another process of a run of several died, failed or does not answer."""
