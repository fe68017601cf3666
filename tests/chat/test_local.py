"""An engine as the screen sees it, with a model of the reference data."""

from __future__ import annotations

import re
from typing import Any

import pytest

from owl_fast.chat.local import LocalBackend
from owl_fast.chat.screen import Screen
from owl_fast.chat.session import Session
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError
from tests.chat.fakes import FakeScreen
from tests.golden_data import Golden, image_files

MICRO = Golden("micro")
PARAMS = SamplingParams(max_tokens=5)


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    return LocalBackend.load(
        str(MICRO.checkpoint), Screen(), device="cpu", dtype="fp32", adapter=None, max_batch=1
    )


def question(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_tokens_are_counted_as_the_engine_counts_them(backend: LocalBackend) -> None:
    image = {"type": "image", "image": str(image_files()[0])}
    messages = question(image, {"type": "text", "text": "What is it?"})
    with backend.reply(messages, PARAMS, None) as reply:
        list(reply)
        assert reply.output.usage.prompt_tokens == backend.count_tokens(messages)


def test_every_topic_is_shown(backend: LocalBackend) -> None:
    messages = [*question({"type": "text", "text": "Hi"}), {"role": "assistant", "content": "Ho"}]
    template = backend.show("template", [*messages, {"role": "user", "content": ""}])
    assert isinstance(template, str)
    assert template.endswith("\nHuman: Hi\nAI: Ho\nHuman: \nAI: ")
    model, memory, cache = (dict(backend.show(topic, messages)) for topic in ("model", "memory", "cache"))
    assert re.fullmatch(r"[\d.]+ M, fp32, on cpu", model["weights"])
    assert model["context"] == "256 positions"
    held = ("weights", "adapters", "cache", "pictures seen before", "work space (estimate)")
    assert list(memory) == [*held, "together", "of cpu"]
    sizes = {name: float(size.split()[0]) for name, size in memory.items()}
    assert all(size.endswith("MiB") for size in list(memory.values())[:-1]), memory
    assert sum(sizes[name] for name in held) == pytest.approx(sizes["together"], abs=0.3)
    assert cache["room"] == "256 positions in each of 1 row(s)"
    with pytest.raises(ParameterError):
        backend.show("weather", messages)


def test_more_beams_than_there_is_room_for_are_refused(backend: LocalBackend) -> None:
    backend.check(PARAMS)
    with pytest.raises(UnsupportedError, match="start it with --beams 4"):
        backend.check(SamplingParams(beams=4))


def test_adapters_are_loaded_by_folder_and_chosen_by_name(backend: LocalBackend) -> None:
    session = Session(backend, PARAMS, FakeScreen())
    plain = session.ask("hello").text
    session.choose_adapter(str(MICRO.adapter))
    assert (session.adapter, backend.adapters()) == ("lora_adapter", ["lora_adapter"])
    assert session.retry().text != plain
    session.choose_adapter(None)
    assert session.retry().text == plain
    session.choose_adapter("lora_adapter")
    with pytest.raises(CheckpointError):
        session.choose_adapter("no/such/folder")
    assert session.adapter == "lora_adapter"
