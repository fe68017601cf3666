"""What may go to a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from owl_fast.chat.text import safe


def test_words_stay_and_control_sequences_do_not() -> None:
    assert safe("a\x1b[2Jb\x07\tc\n猫 é\u00a0👩\u200d🚀") == "a[2Jb\tc\n猫 é\u00a0👩\u200d🚀"
    assert safe("\x9b31m\x85\r\x00\x7f\ud800") == "31m"
    assert safe("evil\u202egnp.exe\u2066") == "evilgnp.exe"


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=50))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    kept = safe(text)
    assert {char for char in kept if unicodedata.category(char) in ("Cc", "Cs")} <= {"\n", "\t"}
    assert safe(kept) == kept
    kept.encode("utf-8")
