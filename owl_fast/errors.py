"""The one exception tree: every error a user can cause is an OwlError.

Messages say what came, what was wanted and what to do about it.
"""

from __future__ import annotations


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
    """A training record, conversation file or other data file is malformed, missing or unreadable."""


class UnsupportedError(OwlError, ValueError):
    """A valid request for something this build does not do."""
