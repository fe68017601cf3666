"""Engine.chat: what is remembered, what is taken back, what a file brings back."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from PIL import Image

from owl_fast import Chat, Engine
from owl_fast.engine.inputs import InputReader
from owl_fast.errors import ContextLengthError, DataError, ImageError, ParameterError, UnsupportedError
from tests.golden_data import Golden, image_files

IMAGES = image_files()


@functools.cache
def engine_() -> Engine:
    return Engine.from_pretrained(Golden("micro").checkpoint, device="cpu", dtype="fp32", max_batch=1)


@pytest.fixture
def engine() -> Engine:
    return engine_()


@pytest.fixture
def chat(engine: Engine) -> Chat:
    return engine.chat("Be brief.", max_tokens=6)


def test_every_question_carries_the_turns_before_it(engine: Engine, chat: Chat) -> None:
    first = chat("What is it?", [IMAGES[0]])
    second = chat("And its colour?", max_tokens=4)
    parts = [{"type": "image", "image": str(IMAGES[0])}, {"type": "text", "text": "What is it?"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And its colour?"},
    ]
    again = engine.generate(messages, max_tokens=4)  # type: ignore[arg-type]
    assert second.logprobs == again.logprobs  # type: ignore[union-attr]
    assert second.usage.image_tokens == engine.config.image_rows
    assert chat.history == [*messages, {"role": "assistant", "content": second.text}]


def test_every_question_is_its_clients(engine: Engine) -> None:
    with engine.chat(max_tokens=9, client="mary").stream("one") as stream:
        next(stream)
        assert engine._loop.scheduler.waiting.clients == ("mary",)


def test_several_answers_are_refused(engine: Engine, chat: Chat) -> None:
    with pytest.raises(UnsupportedError, match="n=2 in a conversation"):
        engine.chat(n=2)
    with pytest.raises(UnsupportedError, match="n=3 in a conversation"):
        chat("one", n=3)
    assert [message["role"] for message in chat.history] == ["system"]


def test_undo_and_clear(chat: Chat) -> None:
    first = chat("one")
    chat("two")
    assert chat.undo() == {"role": "user", "content": "two"}
    assert [message["content"] for message in chat.history] == ["Be brief.", "one", first.text]
    second = chat("one")
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    chat.clear()
    assert chat("one").logprobs == first.logprobs
    chat.clear()
    assert chat.undo() is None


def test_a_question_that_fails_leaves_no_trace(chat: Chat) -> None:
    chat("one")
    before = list(chat.history)
    for error, arguments, options in (
        (ImageError, ("what?", ["none.png"]), {}),
        (ImageError, ("what?", ["https://example.org/a.png"]), {}),
        (ContextLengthError, ("word " * 3000,), {}),
        (ParameterError, ("what?",), {"temperature": -1}),
        (ParameterError, ("what?",), {"temprature": 1}),
    ):
        with pytest.raises(error):
            chat(*arguments, **options)  # type: ignore[arg-type]
        assert chat.history == before


def test_a_streamed_answer_is_remembered_when_it_is_read(chat: Chat) -> None:
    stream = chat.stream("one", max_tokens=20, ignore_eos=True)
    next(stream)
    assert len(chat.history) == 1
    stream.cancel()
    said = "".join(event.text for event in stream)
    assert stream.output.finish_reason == "cancelled"
    assert [message["role"] for message in chat.history] == ["system", "user", "assistant"]
    assert chat.history[-1]["content"] == stream.output.text
    assert stream.output.text.endswith(said)
    with chat.stream("two") as dropped:
        next(dropped)
    assert len(chat.history) == 3


def test_a_file_brings_the_conversation_back(engine: Engine, chat: Chat, tmp_path: Path) -> None:
    chat("What are these?", [Image.open(IMAGES[1]), IMAGES[0], IMAGES[2].read_bytes()])
    chat.save(tmp_path / "c.json")
    wanted = chat("And their colours?")
    for embed in (False, True):
        other = engine.chat(max_tokens=6)
        other.load(tmp_path / "c.json")
        other.save(tmp_path / "d.json", embed=embed)
        other.load(tmp_path / "d.json")
        assert other("And their colours?").logprobs == wanted.logprobs
    with pytest.raises(DataError):
        chat.load(tmp_path / "none.json")
    assert chat.history[-1]["content"] == wanted.text


def test_a_url_is_fetched_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(reader: InputReader, picture: object) -> object:
        if str(picture).startswith("https:"):
            fetched.append(str(picture))
            return IMAGES[0].read_bytes()
        return picture

    monkeypatch.setattr(InputReader, "load", fetch)
    chat = engine.chat(max_tokens=3)
    chat("what?", ["https://example.org/a.png"])
    chat("and?")
    assert fetched == ["https://example.org/a.png"]
    assert chat.history[0]["content"][0]["image"] == IMAGES[0].read_bytes()
