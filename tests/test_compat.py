"""The first release's two calls, and transformers' generation options."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from owl_fast import Engine, compat
from owl_fast.compat import do_generate, get_model, sampling_params
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import ImageError, OwlError, ParameterError, PromptError, UnsupportedError
from owl_fast.images import ImageProcessor
from owl_fast.tokenizer import Tokenizer
from tests.golden_data import FirstRelease, Golden, image_files

GOLDEN = Golden("micro")
IMAGES = image_files()
META = GOLDEN.meta("generate_one_image")
PROMPT, PICTURE = META["prompts"][0], IMAGES[META["image_index"][0]]
Parts = tuple[Engine, Tokenizer, ImageProcessor]


@functools.cache
def parts_() -> Parts:
    return get_model(GOLDEN.checkpoint, device="cpu", dtype=torch.float32, max_batch=3)


@pytest.fixture
def parts() -> Parts:
    return parts_()


def test_the_originals_answer(parts: Parts) -> None:
    engine, tokenizer, _ = parts
    ids = GOLDEN.tensors("generate_one_image")["new_ids"][0].tolist()
    assert do_generate([PROMPT], [str(PICTURE)], *parts, max_length=25) == tokenizer.decode(ids)
    assert do_generate([PROMPT], [str(PICTURE)], *parts) == tokenizer.decode(ids[:19])
    assert do_generate(PROMPT, PICTURE, *parts, "cpu", torch.float32, max_new_tokens=5) == tokenizer.decode(
        ids[:5]
    )
    beams = do_generate([PROMPT], [PICTURE], *parts, num_beams=3, no_repeat_ngram_size=2, early_stopping=True)
    assert (
        beams
        == engine.generate(
            PROMPT, images=[PICTURE], max_tokens=19, beams=3, no_repeat_ngram=2, early_stopping=True
        ).text
    )


def test_a_file_of_the_first_release() -> None:
    release = FirstRelease()
    parts = get_model(
        release.checkpoint, release.folder / "tokenizer.model", None, "cpu", torch.float32, **release.HEADS
    )
    meta = release.meta("generate_two_images")
    ids = release.tensors("generate_two_images")["new_ids"][0].tolist()
    pictures = [base64.b64encode(IMAGES[i].read_bytes()).decode() for i in meta["image_index"]]
    assert do_generate(meta["prompts"], pictures, *parts, max_length=25) == parts[1].decode(ids)


def test_every_form_of_picture(parts: Parts) -> None:
    data = PICTURE.read_bytes()
    wanted = do_generate([PROMPT], [PICTURE], *parts)
    for form in (
        str(PICTURE),
        data,
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode(),
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
        Image.open(PICTURE),
    ):
        assert do_generate([PROMPT], [form], *parts) == wanted


def test_only_the_first_prompt_is_answered(parts: Parts) -> None:
    wanted = do_generate(["Human: <image><image>\nAI: "], IMAGES[:2], *parts)
    two = ["Human: <image><image>\nAI: ", "Human: <image>\nAI: "]
    assert do_generate(two, [*IMAGES[:2], b"not read"], *parts) == wanted
    text_only = do_generate(["Human: hello\nAI: "], None, *parts)
    assert text_only == do_generate("Human: hello\nAI: ", [], *parts) != wanted


def test_sampling_is_repeatable_through_torchs_seed(parts: Parts) -> None:
    ask = functools.partial(do_generate, [PROMPT], [PICTURE], *parts, do_sample=True, temperature=2.0)
    torch.manual_seed(3)
    first, second = ask(), ask()
    torch.manual_seed(3)
    assert ask() == first != second


def test_a_long_answer_ends_with_the_context(parts: Parts) -> None:
    engine = Engine(parts[0].model, parts[1], parts[2], max_context=40, max_batch=1)
    said = do_generate("Human: hello\nAI: ", None, engine, *parts[1:], max_length=2000, min_length=1900)
    assert said == engine.generate("Human: hello\nAI: ").text
    with pytest.raises(PromptError, match="the context has 40"):
        do_generate("word " * 100, None, engine, *parts[1:], max_length=20)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"max_tokens": 19}),
        ({"max_length": 512, "top_k": 5, "temperature": 0.7}, {"max_tokens": 511}),
        ({"max_length": 512, "max_new_tokens": 7}, {"max_tokens": 7}),
        ({"min_length": 6}, {"max_tokens": 19, "min_tokens": 5}),
        ({"min_length": 0, "min_new_tokens": 4}, {"max_tokens": 19, "min_tokens": 4}),
        ({"num_beams": 4, "length_penalty": 2.0}, {"max_tokens": 19, "beams": 4, "length_penalty": 2.0}),
        ({"repetition_penalty": 1.2, "use_cache": True}, {"max_tokens": 19, "repetition_penalty": 1.2}),
        ({"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "top_p": None}, {"max_tokens": 19}),
        ({"num_return_sequences": 1, "do_sample": False, "output_scores": False}, {"max_tokens": 19}),
    ],
    ids=str,
)
def test_options_of_transformers(options: dict[str, Any], wanted: dict[str, Any], parts: Parts) -> None:
    assert sampling_params(parts[1], options) == SamplingParams(**wanted)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"temperature": 1.0, "top_k": 50}),
        ({"top_k": 5, "top_p": 0.9, "temperature": 0.7}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}),
    ],
    ids=str,
)
def test_sampling_defaults(options: dict[str, Any], wanted: dict[str, Any], parts: Parts) -> None:
    params = sampling_params(parts[1], {"do_sample": True, **options})
    assert params == SamplingParams(**wanted, max_tokens=19, seed=params.seed)
    assert params.seed is not None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"bad_words_ids": [[1]]}, UnsupportedError, "bad_words_ids"),
        ({"streamer": object()}, UnsupportedError, "streamer"),
        ({"num_return_sequences": 2}, UnsupportedError, "num_return_sequences=2"),
        ({"eos_token_id": 5}, UnsupportedError, "eos_token_id=5"),
        ({"do_sample": True, "num_beams": 2}, UnsupportedError, "temperature"),
        ({"max_length": "long"}, ParameterError, "max_length"),
        ({"max_length": 1}, ParameterError, "max_tokens"),
        ({"do_sample": True, "temperature": -1.0}, ParameterError, "temperature"),
        ({"max_new_tokens": 2.5}, ParameterError, "max_tokens"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(
    options: dict[str, Any], error: type[OwlError], said: str, parts: Parts
) -> None:
    with pytest.raises(error, match=said):
        do_generate([PROMPT], [PICTURE], *parts, **options)


@pytest.mark.parametrize(
    ("prompts", "images", "error"),
    [
        ([PROMPT], [], PromptError),
        ([PROMPT], [PICTURE, PICTURE], PromptError),
        ([], [], PromptError),
        ([5], [], PromptError),
        ([PROMPT], ["cats"], ImageError),
        ([PROMPT], [""], ImageError),
        ([PROMPT], ["A" * 5000], ImageError),
        ([PROMPT], ["A" * 5001], ImageError),
        ([PROMPT], ["https://example.org/a.png"], ImageError),
    ],
)
def test_what_does_not_fit(prompts: Any, images: Any, error: type[OwlError], parts: Parts) -> None:
    with pytest.raises(error):
        do_generate(prompts, images, *parts)


def test_parts_belong_together(parts: Parts) -> None:
    engine, tokenizer, processor = parts
    with pytest.raises(ParameterError, match="get_model gave"):
        do_generate([PROMPT], [PICTURE], engine, tokenizer, ImageProcessor())
    with pytest.raises(UnsupportedError, match="dtype"):
        do_generate([PROMPT], [PICTURE], engine, tokenizer, processor, "cpu", torch.bfloat16)
    with pytest.raises(UnsupportedError, match="peft_config"):
        get_model(GOLDEN.checkpoint, None, object())  # type: ignore[arg-type]


def test_the_tokenizer_is_passed_on(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    seen: dict[str, Any] = {}
    engine = parts[0]

    def load(path: Any, **options: Any) -> Engine:
        seen.update(options, path=path)
        return engine

    monkeypatch.setattr(compat.Engine, "from_pretrained", load)
    get_model("a.pth", "tokenizer.model", allow_urls=["example.org"])
    assert (seen["path"], seen["tokenizer"], seen["allow_urls"]) == (
        "a.pth",
        "tokenizer.model",
        ["example.org"],
    )
    seen.clear()
    get_model(Path("folder"), device="cpu")
    assert "tokenizer" not in seen
