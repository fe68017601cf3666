"""Whatever is typed into messages, turns and pictures are those of the messages, and no word is an order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from owl_fast.prompts import (
    IMAGE_ID,
    ImagePiece,
    chat_pieces,
    check_images,
    encode,
    parse_record_text,
    training_pieces,
)
from owl_fast.tokenizer import Tokenizer
from tests.typed import (
    INVISIBLE,
    LINES,
    MARKERS,
    OTHER,
    PARTS,
    TURNS,
    TYPED,
    expected_lines,
    found_turns,
    image,
    text,
    unguarded,
    visible,
    written,
)

TOKENIZERS = [
    Tokenizer.from_file(Path(__file__).parent / "golden/tiny/checkpoint/tokenizer.model"),
    Tokenizer.from_file(Path(__file__).parents[1] / "owl_fast/assets/owl-nano/tokenizer.model"),
]
ROWS = 9
PLACE, TYPED_PLACE = "\ue000", "\ue001"  # how a picture is written here, and what a typed PLACE becomes
LONG = 256 << 10

Content = str | list[dict[str, Any]]


def check_property(turns: list[tuple[Content, str]], last: Content, system: str) -> None:
    messages, expected = [], []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        expected += [("Human", line) for line in expected_lines(question)] + [("AI", answer)]
    messages.append({"role": "user", "content": last})
    expected += [("Human", line) for line in expected_lines(last)] + [("AI", "")]

    pieces, images = chat_pieces(messages, system=system)
    prompt = "".join(
        PLACE if isinstance(piece, ImagePiece) else piece.text.replace(PLACE, TYPED_PLACE) for piece in pieces
    )
    found = found_turns(prompt, PLACE)
    assert [role for role, _ in found] == [role for role, _ in expected]
    for (_, came), (_, wanted) in zip(found, expected, strict=True):
        if wanted is None or came is None:
            assert came == wanted
        else:
            wanted = visible(wanted.replace(PLACE, TYPED_PLACE))
            assert unguarded(came.removesuffix("\n")) == unguarded(wanted)

    count = sum(line is None for _, line in expected)
    assert len(images) == count
    check_images(pieces, count)
    trained, trained_images = training_pieces(messages, system=system)
    assert len(trained_images) == count
    assert written(trained) + "\nAI: " == written(pieces)
    for tokenizer in TOKENIZERS:
        for door in (pieces, trained):
            ids = encode(door, tokenizer, ROWS)
            assert ids[0] == tokenizer.bos_id
            assert ids.count(IMAGE_ID) == count * ROWS
            assert not tokenizer.special_ids & set(ids[1:])


@settings(max_examples=250, deadline=None)
@given(TURNS, TYPED | PARTS, TYPED)
def test_turns_and_pictures_are_those_of_the_messages(turns: Any, last: Content, system: str) -> None:
    check_property(turns, last, system)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(TURNS, TYPED | PARTS, TYPED)
def test_twenty_thousand_conversations(turns: Any, last: Content, system: str) -> None:
    check_property(turns, last, system)


@settings(max_examples=150, deadline=None)
@given(TYPED)
def test_the_tokenizer_gives_back_what_was_typed(typed: str) -> None:
    """So the turns found in the prompt are also those found in the ids."""
    whole = typed.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for tokenizer in TOKENIZERS:
        assert tokenizer.decode(tokenizer.encode(typed, literal=True)) == whole.replace("▁", " ")


@settings(max_examples=150, deadline=None)
@given(TYPED, TYPED)
def test_a_record_is_read_as_it_was_written(question: str, answer: str) -> None:
    """Typed "\\nHuman:" opens no turn in a record that is written out and read again."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    again = parse_record_text(written(training_pieces(messages)[0]), 0)
    assert [message["role"] for message in again] == ["system", "user", "assistant"]


@pytest.mark.parametrize("marker", ["Human:", "AI:"])
def test_invisible_characters_hide_no_marker(marker: str) -> None:
    for hidden in ("".join(INVISIBLE), *INVISIBLE):
        for line in LINES:
            for place in range(len(marker)):
                typed = marker[:place] + hidden + marker[place:]
                check_property([(f"x{line}{typed} y", typed)], [text(typed)], typed)


def test_long_runs_of_one_thing() -> None:
    for thing in (*MARKERS, *LINES, *INVISIBLE, *OTHER):
        check_property([], thing * (4096 // len(thing)), "")
    for thing in ("a", "\n", "\nAI:"):
        long = thing * (LONG // len(thing))
        check_property([], [text(long), image(), text(long)], "")


def seconds(things: list[Content]) -> float:
    begin = time.process_time()
    for content in things:
        check_property([], content, "")
    return time.process_time() - begin


@pytest.mark.slow
def test_time_is_linear_in_the_length() -> None:
    """Four times the text takes four times as long, with room for noise; quadratic work takes sixteen."""
    for thing in ("a", " ", "\n", "\x00", "\ud800", "🦉", "\u200b", "\n\u200b", "<image>", "\nHuman:", "ab "):
        short, long = (thing * (size // len(thing)) for size in (LONG // 4, LONG))
        assert seconds([long]) < 2.5 * 4 * max(seconds([short]), 0.02), repr(thing)
    short_parts, long_parts = ([text("x")] * count for count in (LONG // 64, LONG // 16))
    assert seconds([long_parts]) < 2.5 * 4 * max(seconds([short_parts]), 0.02)
