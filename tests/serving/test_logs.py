from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from owl_fast.serving.limits import Limits
from owl_fast.serving.logs import LineFilter, install, log_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain words, é 猫", "plain words, é 猫"),
        ("a\r\nERROR forged", "a\\r\\nERROR forged"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x00\x7f\x85\u2028\u202e", "\\x00\\x7f\\x85\\u2028\\u202e"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_what_is_escaped(text: str, line: str) -> None:
    assert log_line(text) == line
    assert log_line(line) == line


@pytest.mark.parametrize("text", ["x" * 10_000, "é" * 10_000, "\n" * 10_000, "a" * 2046 + "\U0001f989"])
def test_lines_are_cut(text: str) -> None:
    line = log_line(text)
    assert 2040 <= len(line.encode()) <= 2048
    assert line.endswith("...")


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    logger = logging.getLogger("tests.serving.logs")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("LEVEL %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)


def test_records_and_tracebacks_cannot_forge_lines(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    install(Limits())
    install(Limits())  # a second time changes nothing
    assert sum(isinstance(one, LineFilter) for one in logger.handlers[0].filters) == 1
    logger.warning("said %s", "x\nLEVEL forged")
    logger.warning("%d arguments", "no number\nLEVEL forged")
    try:
        raise ValueError("bad\nLEVEL forged\r\nLEVEL " + "y" * 5000)
    except ValueError:
        logger.exception("failed")
    logger.warning("with stack", stack_info=True)
    lines = stream.getvalue().rstrip("\n").split("\n")
    assert [line for line in lines if line.startswith("LEVEL")] == [
        "LEVEL said x\\nLEVEL forged",
        "LEVEL %d arguments",
        "LEVEL failed",
        "LEVEL with stack",
    ]
    assert any("ValueError: bad" in line for line in lines)
    assert all(line.startswith(("LEVEL", "  | ")) for line in lines)
    assert max(len(line) for line in lines) <= 2048 + len("LEVEL ")


def test_long_tracebacks_keep_their_end(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    install(Limits())
    try:
        raise ValueError("\n" * 10_000 + "the end")
    except ValueError:
        logger.exception("failed")
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 61
    assert lines[-1] == "  | the end"
