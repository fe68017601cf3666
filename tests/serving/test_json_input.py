from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.serving.errors import ApiError
from owl_fast.serving.json_input import parse
from owl_fast.serving.limits import Limits

LIMITS = Limits()


def refusal(body: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(ApiError) as caught:
        parse(body, limits)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"
    assert len(caught.value.content) <= limits.error
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, -2.5, true, false, null, "x"]}', {"a": [1, -2.5, True, False, None, "x"]}),
        (b" \r\n\t[ ] ", []),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"1e308", 1e308),
        (b'"\\ud83e\\udd89 \xf0\x9f\xa6\x89"', "\U0001f989 \U0001f989"),
        (b'"\\\\ud800"', "\\ud800"),  # an escaped backslash, and letters
        (b'{"": 1, "a": {"": 2}}', {"": 1, "a": {"": 2}}),
        (b'"[[[[{{{{,,,, \\" ]]]]"', '[[[[{{{{,,,, " ]]]]'),
    ],
)
def test_what_it_takes(body: bytes, value: object) -> None:
    assert parse(body, replace(LIMITS, json_depth=2, json_tokens=20)) == value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": "\xff"}', "not UTF-8 (at byte 7)"),
        (b'"\xed\xa0\x80"', "not UTF-8"),  # a surrogate, encoded
        (b'"\xc0\xaf"', "not UTF-8"),  # an overlong slash
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "line 1, column 2"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\uDC00": 1}', "surrogate"),
        (b'["\\udc00\\ud800"]', "surrogate"),
        (b'{"a": 1,\n "b": ?}', "line 2, column 7"),
        (b'{"a": 1,\n "b', "Unterminated string starting at line 2, column 2"),
        (b'"a\nb"', "Invalid control character at line 1, column 3"),
        (b'"\\x"', "Invalid \\escape"),
        (b"[1, 2", "line 1, column 6"),
        (b"{} {}", "Extra data at line 1, column 4"),
        (b"[1,]", "line 1"),
        (b"{'a': 1}", "line 1, column 2"),
        (b"[01]", "line 1"),
        (b'{"a": 1, "a": 1}', "same key twice"),
        (b'[{"a": {"b": 1, "\\u0062": 2}}]', "same key twice"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "NaN and Infinity"),
        (b"[1e309]", "too large"),
        (b"9223372036854775808", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b"1" * 5000, "64 bits"),
        (b"[" * 33 + b"]" * 33, "deeper than 32 at line 1, column 33"),
        (b'{"a":' * 33, "deeper than 32"),
        (b"[" + b"0," * 20_000 + b"0]", "more than 20000 strings"),
    ],
)
def test_what_it_refuses(body: bytes, words: str) -> None:
    assert words in refusal(body)


def test_depth_and_number_are_exact() -> None:
    limits = replace(LIMITS, json_depth=3, json_tokens=10)
    assert parse(b"[[[0]]]", limits) == [[[0]]]
    refusal(b"[[[[]]]]", limits)
    assert parse(b"[[], [], []]", limits) == [[], [], []]
    refusal(b"[[], [], [], 0]", limits)


HUGE = 20 << 20


def in_linear_time(start: bytes, unit: bytes) -> None:
    """A bound on processor time that no quadratic way meets: that would be hours."""
    body = (start + unit * (HUGE // len(unit)))[:HUGE]
    begin = time.process_time()
    refusal(body)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("unit", [b"[", b"{},", b"0,", b'"",', b'"', b'"\\', b"\\", b"1"], ids=repr)
def test_twenty_mebibytes_take_linear_time(unit: bytes) -> None:
    in_linear_time(b"", unit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        *(
            b"[",
            b'{"":',
            b"[],",
            b"{},",
            b"0,",
            b'"",',
            b'"',
            b'\\"',
            b'"\\',
            b"\\",
            b" ",
            b"1",
            b"-",
            b"1e9",
        ),
        *(b'"\\u0061', b"\xff", b"\x00", b"\xc3\xa9", b"\n", b"]"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("start", [b"", b'["', b"[0."], ids=repr)
def test_twenty_mebibytes_of_anything_take_linear_time(unit: bytes, start: bytes) -> None:
    in_linear_time(start, unit)


def test_a_long_string_is_read() -> None:
    body = b'{"url": "data:image/png;base64,' + b"A" * HUGE + b'"}'
    assert len(parse(body, LIMITS)["url"]) == HUGE + len("data:image/png;base64,")


TEXT = st.text(st.characters(codec="utf-8"))  # no half pairs: UTF-8 cannot say them
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
DAMAGE = (b'"', b"\\", b"[", b"}", b",", b"\xed\xa0\x80", b"\\ud834", b"NaN", b"1e999", b"0", b"\x00", b"")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES, st.booleans())
def test_what_others_write_is_read_back(value: object, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode(), LIMITS) == value


@settings(max_examples=500, deadline=None, derandomize=True)
@given(VALUES, st.data())
def test_damage_is_refused_or_means_what_it_says(value: object, data: st.DataObject) -> None:
    body = bytearray(json.dumps(value, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(DAMAGE))
    try:
        found = parse(bytes(body), LIMITS)
    except ApiError:
        refusal(bytes(body))
    else:
        assert found == json.loads(body)
