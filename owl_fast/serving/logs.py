"""Log lines that nobody outside can forge, and that stay lines."""

from __future__ import annotations

import logging
import traceback

from owl_fast.serving.limits import Limits

_DEFAULT = Limits().log_line
_CONTINUED = "  | "  # before every line of a traceback: none can pass for a line of its own
_TRACEBACK_LINES = 60


def log_line(text: str, size: int = _DEFAULT) -> str:
    """`text` on one line of at most `size` bytes, with what is not printable escaped."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:size])
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    return encoded[: size - 3].decode(errors="ignore") + "..."


class LineFilter(logging.Filter):
    """Makes every record's message one safe line, and every line of its traceback another."""

    def __init__(self, size: int = _DEFAULT) -> None:
        super().__init__()
        self._size = size

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit the text: a log call must not end a request
            message = str(record.msg)
        record.msg, record.args = log_line(message.rstrip(), self._size), None
        if record.exc_info and not record.exc_text:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info))
        if record.exc_text:
            record.exc_text = self._lines(record.exc_text)
        if record.stack_info:
            record.stack_info = self._lines(record.stack_info)
        return True

    def _lines(self, text: str) -> str:
        # The end of a traceback says most. "\n" only: what else splitlines() takes for an end is escaped.
        lines = text.rstrip("\n").split("\n")[-_TRACEBACK_LINES:]
        width = self._size - len(_CONTINUED)
        return "\n".join(_CONTINUED + log_line(line.removeprefix(_CONTINUED), width) for line in lines)


def install(limits: Limits) -> None:
    """Put the filter on every handler there is; handlers that come later need it put on them."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {entry for one in loggers if isinstance(one, logging.Logger) for entry in one.handlers}
    for handler in handlers | ({logging.lastResort} if logging.lastResort else set()):
        if not any(isinstance(one, LineFilter) for one in handler.filters):
            handler.addFilter(LineFilter(limits.log_line))
