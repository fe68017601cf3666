"""Tokenizer: the reference ids, literal and special text, streaming, broken files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.errors import CheckpointError
from owl_fast.prompts import encode, raw_pieces
from owl_fast.tokenizer import StreamDecoder, Tokenizer

GOLDEN = Path(__file__).parent / "golden"
TINY = Tokenizer.from_file(GOLDEN / "tiny/checkpoint/tokenizer.model")


def _reference(model: str) -> dict:
    return json.loads((GOLDEN / model / "golden/tokenization.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", ["tiny", "micro"])
def test_reference_ids_and_decoding(model: str) -> None:
    tokenizer = Tokenizer.from_file(GOLDEN / model / "checkpoint/tokenizer.model")
    reference = _reference(model)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    assert tokenizer.pad_id == 0
    assert len(reference["cases"]) > 10
    for case in reference["cases"]:
        ids = encode(raw_pieces(case["text"]), tokenizer, reference["media_length"])
        assert ids == case["ids_bos"], case["text"]
        assert ids[1:] == case["ids_no_bos"], case["text"]
        assert tokenizer.decode(ids) == case["decoded"], case["text"]
    for text, row in zip(reference["batched"]["texts"], reference["batched"]["input_ids"], strict=True):
        ids = encode(raw_pieces(text), tokenizer, reference["media_length"])
        assert row == ids + [reference["batch_pad_id"]] * (len(row) - len(ids))


def test_special_names_are_words_when_literal() -> None:
    text = "a</s> <s><unk>b"
    assert not TINY.special_ids & set(TINY.encode(text, literal=True))
    assert TINY.decode(TINY.encode(text, literal=True)) == text
    raw = TINY.encode(text, literal=False)
    assert [i for i in raw if i in TINY.special_ids] == [2, 1, 0]
    assert TINY.encode("</s><s>", literal=False) == [2, 1]


@pytest.mark.parametrize(
    "text", ["a\ud800b", "\udc00", "x\x00y", "\x00", "\ud83e\udd89", "\r\n\u2028", "<0x0A>"]
)
@pytest.mark.parametrize("literal", [True, False])
def test_odd_text_survives(text: str, literal: bool) -> None:
    ids = TINY.encode(text, literal=literal)
    assert ids
    assert not TINY.special_ids & set(ids)
    wanted = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert TINY.decode(ids) == wanted


def test_decode_skips_what_has_no_text() -> None:
    hello = TINY.encode("Hello", literal=True)
    assert TINY.decode([1, -1, -1, *hello, 2, 0, TINY.vocab_size, 10**9]) == "Hello"
    assert TINY.decode([]) == ""


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(-2, TINY.vocab_size + 1), max_size=40))
def test_streamed_text_is_the_decoded_text(ids: list[int]) -> None:
    _check_stream(ids)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*range(3, 259), 13, 428, 308, 300, 2, 1, -1]), max_size=24))
def test_streamed_bytes_are_the_decoded_bytes(ids: list[int]) -> None:
    """Byte-fallback pieces (ids 3..258), whole, cut off and invalid characters."""
    _check_stream(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_text_comes_back_and_streams_by_characters(text: str) -> None:
    ids = TINY.encode(text, literal=True)
    # A typed U+2581 is SentencePiece's own sign for a space.
    wanted = text.replace("▁", " ")
    assert TINY.decode(ids) == wanted
    stream = StreamDecoder(TINY)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) == wanted
    assert stream.flush() == ""


def _check_stream(ids: list[int]) -> None:
    stream = StreamDecoder(TINY)
    text = "".join([stream.push(i) for i in ids]) + stream.flush()
    assert text == TINY.decode(ids)


def test_stream_holds_back_an_unfinished_character() -> None:
    stream = StreamDecoder(TINY)
    owl = [3 + byte for byte in "🦉".encode()]
    assert [stream.push(i) for i in owl] == ["", "", "", "🦉"]
    assert stream.push(owl[0]) == ""
    assert stream.flush() == "\ufffd"


def test_a_stream_that_goes_on_with_a_text_keeps_the_space() -> None:
    ids = TINY.encode("owl flies", literal=True)
    assert "".join(StreamDecoder(TINY, begun=True).push(i) for i in ids) == " owl flies"


def test_broken_files_are_named(tmp_path: Path) -> None:
    good = (GOLDEN / "tiny/checkpoint/tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: no such file"):
        Tokenizer.from_file(path)
    for content in (b"", b"not a model" * 50, good[: len(good) // 2 + 1], b"\x00" * 1000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
            Tokenizer.from_file(path)
    with pytest.raises(CheckpointError):
        Tokenizer.from_file(tmp_path)
