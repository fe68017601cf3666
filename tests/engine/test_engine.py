"""The whole engine on the reference models: the original's answers, and what must not change them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast import Engine, SamplingParams
from owl_fast.engine.outputs import Output
from owl_fast.errors import (
    CheckpointError,
    ContextLengthError,
    ImageError,
    OwlError,
    ParameterError,
    PromptError,
    UnsupportedError,
)
from owl_fast.models.batch import PackedBatch
from owl_fast.prompts import HEADER
from tests.engine.golden_engines import CASES, IMAGES, assert_same, case_of, engine_of, held_blocks
from tests.golden_data import NAMES, Golden
from tests.tolerances import ACTIVATION, SAME_RUN


@pytest.fixture
def engine() -> Engine:
    return engine_of("micro")


# --- the original's numbers ---


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_the_originals(name: str, case: str) -> None:
    stored = Golden(name).tensors(f"generate_{case}")
    request = case_of(name, case)
    out = engine_of(name).generate(request["prompt"], images=request["images"], max_tokens=24)
    assert out.token_ids == stored["new_ids"][0].tolist()
    assert out.logprobs == pytest.approx(stored["logprobs"][0].tolist(), abs=ACTIVATION)
    assert out.text == engine_of(name).tokenizer.decode(out.token_ids)
    assert out.usage.prompt_tokens == stored["input_ids"].shape[1]
    assert out.usage.image_tokens == int((stored["input_ids"] == -1).sum())
    assert (out.usage.completion_tokens, out.finish_reason) == (24, "length")


@pytest.mark.parametrize("name", NAMES)
def test_generation_options_are_the_originals(name: str) -> None:
    stored = Golden(name).tensors("generate_options")
    request = case_of(name, "options")
    ask = functools.partial(engine_of(name).generate, request["prompt"], images=request["images"])
    beams = ask(max_tokens=16, beams=3, no_repeat_ngram=2, early_stopping=True)
    assert beams.token_ids == stored["beam3_ngram2"][0].tolist()
    assert beams.score == pytest.approx(stored["beam3_score"].item(), abs=ACTIVATION)
    assert ask(max_tokens=24, no_repeat_ngram=2).token_ids == stored["greedy_ngram2"][0].tolist()
    assert ask(max_tokens=24, repetition_penalty=1.3).token_ids == stored["greedy_reppen1.3"][0].tolist()
    assert held_blocks(engine_of(name)) == 0


def test_score_gives_the_log_probs_of_an_answer(engine: Engine) -> None:
    request = case_of("micro", "one_image")
    answer = "there is a cat"
    tail = engine.tokenizer.encode(answer, literal=True)
    ids = engine._reader.read(request["prompt"], request["images"]).ids
    rows = engine.encode_images(request["images"]).flatten(0, 1)
    hidden = engine.model(PackedBatch.from_sequences([ids + tail], rows))
    table = torch.log_softmax(engine.model.logits(hidden).float(), -1)
    wanted = [float(table[len(ids) - 1 + k, token]) for k, token in enumerate(tail)]
    assert engine.score(request["prompt"], request["images"], answer) == pytest.approx(wanted, abs=SAME_RUN)
    assert engine.score(request["prompt"], request["images"], "") == []


# --- a batch equals one at a time ---


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_one_at_a_time(name: str) -> None:
    engine = engine_of(name)
    requests = [case_of(name, case) for case in CASES]
    for params in (
        SamplingParams(max_tokens=12),
        SamplingParams(max_tokens=12, temperature=0.8, top_k=20, seed=5),
    ):
        together = engine.generate(requests, params)
        assert isinstance(together, list)
        for request, out in zip(requests, together, strict=True):
            assert_same(out, engine.generate(request["prompt"], params, images=request["images"]))


@pytest.mark.parametrize("step_tokens", [4, 17, 50])
def test_a_prompt_in_chunks_equals_the_whole(step_tokens: int) -> None:
    golden = Golden("tiny")
    whole = engine_of("tiny")
    chunked = Engine(
        whole.model, whole.tokenizer, whole._reader.processor, max_batch=4, step_tokens=step_tokens
    )
    requests = [case_of(golden.name, case) for case in CASES]
    for ours, other in zip(
        chunked.generate(requests, max_tokens=8), whole.generate(requests, max_tokens=8), strict=True
    ):
        assert_same(ours, other)


def test_unused_cache_slots_are_never_read(engine: Engine) -> None:
    requests = [case_of("micro", case) for case in CASES]
    options = {"max_tokens": 10, "beams": 2, "no_repeat_ngram": 2}
    clean = [*engine.generate(requests, max_tokens=10), *engine.generate(requests, **options)]
    engine._loop.scheduler.allocator.forget_contents()
    for layer in engine._runner.cache.layers:
        for tensor in layer:
            tensor.fill_(torch.nan)
    poisoned = [*engine.generate(requests, max_tokens=10), *engine.generate(requests, **options)]
    for ours, other in zip(poisoned, clean, strict=True):
        assert (ours.token_ids, ours.logprobs, ours.score) == (other.token_ids, other.logprobs, other.score)


def test_adjacent_pictures_are_each_inserted(engine: Engine) -> None:
    out = engine.generate("<image><image>AI: ", images=IMAGES[:2], max_tokens=8)
    rows = engine.encode_images(IMAGES[:2])
    separate = torch.cat([engine.encode_images([image]) for image in IMAGES[:2]])
    assert torch.equal(rows, separate)
    ids = engine._reader.read("<image><image>AI: ", IMAGES[:2]).ids
    swapped = engine.generate("<image><image>AI: ", images=IMAGES[1::-1], max_tokens=8)
    assert swapped.logprobs != out.logprobs
    assert_same(out, _generate_from_rows(engine, ids, rows.flatten(0, 1), 8))


def _generate_from_rows(engine: Engine, ids: list[int], rows: Tensor, count: int) -> Output:
    """Greedy answer by one uncached forward per token, the rows put in by hand."""
    out = engine.generate("AI: ", max_tokens=1)
    ids, chosen, logprobs = list(ids), [], []
    for _ in range(count):
        hidden = engine.model(PackedBatch.from_sequences([ids], rows))
        row = torch.log_softmax(engine.model.logits(hidden[-1:])[0].float(), 0)
        chosen.append(int(row.argmax()))
        logprobs.append(float(row.max()))
        ids.append(chosen[-1])
    text = engine.tokenizer.decode(chosen)
    return replace(out, text=text, token_ids=chosen, logprobs=logprobs, finish_reason="length")


# --- the doors ---


def test_messages_and_raw_prompt_are_the_same_question(engine: Engine) -> None:
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "What is it?"}],
        }
    ]
    raw = engine.generate(
        f"{HEADER}\nHuman: <image>\nHuman: What is it?\nAI: ", images=[IMAGES[0]], max_tokens=8
    )
    assert_same(engine.generate(messages, max_tokens=8), raw)  # type: ignore[arg-type]
    many = engine.generate([{"messages": messages}, "AI: "], max_tokens=8)
    assert isinstance(many, list)
    assert_same(many[0], raw)
    assert engine.generate([], max_tokens=8) == []


def test_max_tokens_defaults_to_the_rest_of_the_context(engine: Engine) -> None:
    small = Engine(engine.model, engine.tokenizer, engine._reader.processor, max_context=40, max_batch=1)
    out = small.generate("Human: hello\nAI: ", ignore_eos=True)
    assert out.usage.total_tokens == 40
    assert out.finish_reason == "length"


def test_too_long_a_request_names_both_numbers(engine: Engine) -> None:
    small = Engine(engine.model, engine.tokenizer, engine._reader.processor, max_context=40, max_batch=1)
    with pytest.raises(ContextLengthError, match=r"47.*40"):
        small.generate("AI: ", max_tokens=47 - len(small._reader.read("AI: ").ids))
    with pytest.raises(ContextLengthError):
        small.generate("word " * 60)
    assert held_blocks(small) == 0


@pytest.mark.parametrize(
    ("prompt", "images", "error"),
    [
        ("<image> AI: ", None, PromptError),
        ("AI: ", [IMAGES[0]], PromptError),
        ("<image> AI: ", "scene.png", PromptError),
        ("<image> AI: ", ["missing.png"], ImageError),
        ("<image> AI: ", [b"no picture"], ImageError),
        ([{"role": "user", "content": "x"}], [IMAGES[0]], PromptError),
        ([{"prompt": "AI: ", "messages": []}], None, PromptError),
        ([{"prompt": "AI: ", "adapter": "a"}], None, ParameterError),
        ([{"prompt": "AI: "}, {"prompt": "<image>"}], None, PromptError),
        ([5], None, PromptError),
        (None, None, PromptError),
        (5, None, PromptError),
        ({"prompt": "AI: "}, None, PromptError),
        ([{"prompt": 5}], None, PromptError),
        ([{"messages": 5}], None, PromptError),
        (["AI: "], [IMAGES[0]], PromptError),
    ],
    ids=str,
)
def test_a_request_that_does_not_fit_is_refused_before_anything_runs(
    engine: Engine, prompt: Any, images: Any, error: type[OwlError]
) -> None:
    with pytest.raises(error):
        engine.generate(prompt, images=images, max_tokens=2)
    assert not engine._loop.scheduler.waiting
    assert held_blocks(engine) == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda engine: engine.generate("AI: ", {"max_tokens": 2}), ParameterError),
        (lambda engine: engine.chat(None, {"max_tokens": 2}), ParameterError),
        (lambda engine: engine.chat()("x", images=IMAGES[0]), PromptError),
        (lambda engine: engine.encode_images(IMAGES[0]), PromptError),
        (lambda engine: engine.score("AI: ", None, 5), PromptError),
        (lambda engine: engine.load_adapter("a", None), ParameterError),
    ],
)
def test_arguments_of_another_kind_are_named(
    engine: Engine, call: Callable[[Engine], object], error: type[OwlError]
) -> None:
    with pytest.raises(error, match=r" (is|came) "):
        call(engine)


def test_more_beams_than_rows_are_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedError, match="max_batch"):
        engine.generate("AI: ", beams=5, max_tokens=2)


def test_one_failed_request_raises_and_of_a_list_is_reported(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = engine.generate("AI: ", max_tokens=4)
    run = engine._runner.run

    def ill_first_row(plan: Any) -> Tensor:
        logits = run(plan).clone()
        logits[0] = torch.nan
        return logits

    monkeypatch.setattr(engine._runner, "run", ill_first_row)
    with pytest.raises(OwlError, match="not finite"):
        engine.generate("AI: ", max_tokens=4)
    with pytest.raises(OwlError, match="not finite"):
        list(engine.stream("AI: ", max_tokens=4))
    runs = iter([ill_first_row])
    monkeypatch.setattr(engine._runner, "run", lambda plan: next(runs, run)(plan))
    ill, well = engine.generate(["AI: ", "AI: "], max_tokens=4)  # type: ignore[misc]
    assert (ill.finish_reason, ill.token_ids) == ("error", [])
    assert_same(well, healthy)


def test_encode_images_gives_ordinary_tensors(engine: Engine) -> None:
    rows = engine.encode_images(IMAGES)
    config = engine.config
    assert rows.shape == (len(IMAGES), config.image_rows, config.llama.hidden_size)
    assert not rows.is_inference()
    stored = Golden("micro").tensors("vision")["visual_embeds"]
    torch.testing.assert_close(rows, stored, atol=ACTIVATION, rtol=0)
    assert engine.encode_images([]).shape == (0, config.image_rows, config.llama.hidden_size)


# --- loading ---


def test_an_adapter_is_loaded_with_the_model() -> None:
    golden = Golden("micro")
    adapted = Engine.from_pretrained(
        golden.checkpoint, device="cpu", dtype="fp32", adapter=golden.adapter, max_batch=1
    )
    request = case_of("micro", "one_image")
    ids = adapted._reader.read(request["prompt"], request["images"]).ids
    stored = golden.tensors("forward_lora_one_image")
    assert ids == stored["input_ids"][0].tolist()
    out = adapted.generate(request["prompt"], images=request["images"], max_tokens=1)
    wanted = torch.log_softmax(stored["logits_tail"][0, -1], 0)
    assert out.token_ids == [int(wanted.argmax())]
    assert out.logprobs == pytest.approx([float(wanted.max())], abs=ACTIVATION)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "tpu"}, UnsupportedError),
        ({"device": "cuda:99"}, UnsupportedError),
        ({"dtype": "int3"}, UnsupportedError),
        ({"max_batch": 0}, ParameterError),
        ({"max_batch": 2.5}, ParameterError),
        ({"max_batch": 1 << 40}, ParameterError),
        ({"max_context": "long"}, ParameterError),
        ({"adapter": 5}, ParameterError),
        ({"tokenizer": 5}, ParameterError),
        ({"config": 5}, ParameterError),
        ({"adapter": "no/such/folder"}, CheckpointError),
    ],
    ids=str,
)
def test_loading_options_that_cannot_be_met(options: dict[str, Any], error: type[OwlError]) -> None:
    with pytest.raises(error):
        Engine.from_pretrained(Golden("micro").checkpoint, **options)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        Engine.from_pretrained(tmp_path / "nowhere")


def test_loading_reports_its_progress() -> None:
    seen: list[tuple[int, int]] = []
    Engine.from_pretrained(
        Golden("micro").checkpoint, device="cpu", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
