'''Blocks of several lines between """ and """.'''

from __future__ import annotations

import pytest

from owl_fast.chat.entry import block, in_block


@pytest.mark.parametrize(
    ("entry", "inside", "text"),
    [
        ("hello", False, None),
        ('"""hello', True, None),
        ('  """\nhello\nyou', True, None),
        ('"""hello"""', False, "hello"),
        ('"""\nhello\n\nyou\n"""', False, "hello\n\nyou"),
        ('"""\n/clear\n"""', False, "/clear"),
        ('say """x', False, None),
        ('"""', True, None),
        ('""""""', False, ""),
        ('"""a""" b', False, None),
    ],
)
def test_blocks(entry: str, inside: bool, text: str | None) -> None:
    assert in_block(entry) is inside
    assert block(entry) == text
