"""The body of a request as JSON, read strictly: one text has one meaning, and a known price.

The standard parser takes NaN, keeps the last of two equal keys, follows any depth and makes objects of some
fifty bytes out of two. A first look over the text, at C's speed, refuses what is too deep or too much before
any of it is built.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits

_TOKEN = re.compile(r'["\[\]{},]')  # what opens, closes and separates values
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_INT64_DIGITS = 20  # with its sign


def parse(body: bytes, limits: Limits) -> Any:
    """What the JSON text says; ApiError 400 says what is wrong with it, and where, without repeating it."""
    if not body.strip():
        raise _error("the body is empty; wanted a JSON object")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(f"the body is not UTF-8 (at byte {error.start})") from None
    if text.startswith("\ufeff"):
        raise _error("the body starts with a byte order mark; wanted UTF-8 without one")
    _look_over(text, limits)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise _error(f"the body is not JSON: {what} at {_place(text, error.pos)}") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _error("a string has half of a surrogate pair, which is no character") from None
    return value


def _look_over(text: str, limits: Limits) -> None:
    # Escapes make way for as many other characters: a pattern for them would take memory for each.
    # Outside of strings they are errors, and the parser reads nothing behind those.
    plain = text.replace("\\\\", "__").replace('\\"', "__") if "\\" in text else text
    number = depth = at = 0
    while match := _TOKEN.search(plain, at):
        token, at, number = match[0], match.end(), number + 1
        if number > limits.json_tokens:
            raise _error(f"more than {limits.json_tokens} strings, brackets and commas")
        if token == '"':
            at = plain.find('"', at) + 1  # much faster than a pattern: most of a body is pictures
            if not at:
                return  # the parser reads nothing behind a string without an end
        elif token in "[{":
            depth += 1
            if depth > limits.json_depth:
                raise _error(f"nested deeper than {limits.json_depth} at {_place(text, match.start())}")
        elif token in "]}":
            depth -= 1


def _integer(text: str) -> int:
    if len(text) <= _INT64_DIGITS and -(1 << 63) <= (value := int(text)) < 1 << 63:
        return value
    raise _error("an integer does not fit 64 bits")


def _float(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise _error("a number is too large")


def _constant(_: str) -> NoReturn:
    raise _error("NaN and Infinity are not JSON; wanted a finite number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _error("an object has the same key twice")
    return found


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _error(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
