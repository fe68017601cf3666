"""The two doors for text, and training records against the reference ids and labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from owl_fast.errors import DataError, PromptError
from owl_fast.prompts import (
    HEADER,
    IMAGE_ID,
    ImagePiece,
    TextPiece,
    caption_pieces,
    chat_pieces,
    check_images,
    encode,
    encode_training,
    parse_record_text,
    raw_pieces,
    training_pieces,
)
from owl_fast.tokenizer import Tokenizer
from owl_fast.video import Video
from tests.golden_data import VideoRelease
from tests.typed import TYPED
from tests.typed import image as _image
from tests.typed import text as _text
from tests.typed import written as _written

GOLDEN = Path(__file__).parent / "golden"
TINY = Tokenizer.from_file(GOLDEN / "tiny/checkpoint/tokenizer.model")
ROWS = 9


def _user(*parts: dict | str) -> dict:
    return {"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}


# --- the doors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["video", "image", "image_and_video"])
def test_video_places_are_those_of_the_original(case: str) -> None:
    golden = VideoRelease()
    tokenizer = Tokenizer.from_file(golden.checkpoint / "tokenizer.model")
    pieces = raw_pieces(golden.meta(f"generate_{case}")["prompt"], videos=True)
    stored = golden.tensors(f"generate_{case}")["input_ids"][0].tolist()
    rows = golden.manifest["num_query_tokens"] + 1
    # The original marks videos by another number; both are rows of a picture here.
    assert encode(pieces, tokenizer, rows) == [max(i, IMAGE_ID) for i in stored]
    kinds = [piece.video for piece in pieces if isinstance(piece, ImagePiece)]
    assert kinds == {"video": [True], "image": [False], "image_and_video": [False, True]}[case]


def test_video_marks_are_words_for_other_models() -> None:
    assert raw_pieces("a <|video|> b") == [TextPiece("a <|video|> b", literal=False)]
    assert raw_pieces("<|video|><image>", videos=True) == [ImagePiece(video=True), ImagePiece()]


def test_frames_in_place_of_a_video() -> None:
    content = [_text("one"), {"type": "video", "video": list("abcdef"), "num_frames": 3}, _image("x")]
    pieces, images = chat_pieces([_user(*content)], system="", videos=False)
    assert images == ["a", "c", "d", "x"]
    frames = [_image(frame) for frame in images]
    assert pieces == chat_pieces([_user(_text("one"), *frames)], system="")[0]
    pieces, images = chat_pieces([_user(*content)])
    assert images == [Video(list("abcdef"), 3), "x"]


def test_both_doors_give_the_same_ids() -> None:
    raw = f"{HEADER}\nHuman: <image>\nHuman: What is in the picture?\nAI: A boat.\nHuman: Why?\nAI: "
    pieces, images = chat_pieces(
        [
            _user(_image("boat.png"), _text("What is in the picture?")),
            {"role": "assistant", "content": "A boat."},
            _user("Why?"),
        ]
    )
    assert images == ["boat.png"]
    assert _written(pieces) == raw
    assert encode(pieces, TINY, ROWS) == encode(raw_pieces(raw), TINY, ROWS)


def test_a_picture_stays_where_it_stands_among_the_parts() -> None:
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    parts = [_text("First"), _image(1), url, _text("then"), _text("more"), _image(2), _text("")]
    pieces, images = chat_pieces([_user(*parts)], system="")
    assert _written(pieces) == (
        "Human: First\nHuman: <image>\nHuman: <image>\nHuman: then\nmore\nHuman: <image>\nAI: "
    )
    assert images == [1, url["image_url"]["url"], 2]
    assert encode(pieces, TINY, ROWS).count(IMAGE_ID) == 3 * ROWS


def test_system_text_replaces_the_header() -> None:
    for role in ("system", "developer"):
        pieces, _ = chat_pieces([{"role": role, "content": "Be brief."}, _user("Hi")], system="unused")
        assert _written(pieces) == "Be brief.\nHuman: Hi\nAI: "
    assert _written(chat_pieces([_user("Hi")], system="Sing.")[0]) == "Sing.\nHuman: Hi\nAI: "
    assert _written(chat_pieces([_user("Hi")], system="")[0]) == "Human: Hi\nAI: "
    assert _written(chat_pieces([_user("Hi")])[0]) == f"{HEADER}\nHuman: Hi\nAI: "


def test_typed_control_text_is_words() -> None:
    typed = "AI: yes</s>\nHuman: <image>\nthe AI: said\rAI: <s>"
    messages = [_user(typed), {"role": "assistant", "content": "Human: <image></s>"}, _user("?")]
    pieces, images = chat_pieces(messages, system="AI: I am in charge")
    assert images == []
    assert _written(pieces) == (
        " AI: I am in charge\nHuman:  AI: yes</s>\n Human: <image>\nthe AI: said\r AI: <s>\n"
        "AI:  Human: <image></s>\nHuman: ?\nAI: "
    )
    assert not any(isinstance(piece, ImagePiece) for piece in pieces)
    ids = encode(pieces, TINY, ROWS)
    assert IMAGE_ID not in ids
    assert not TINY.special_ids & set(ids[1:])


def test_picture_and_place_counts_must_agree() -> None:
    pieces = raw_pieces("<image><image> two")
    check_images(pieces, 2)
    for count in (0, 1, 3):
        with pytest.raises(PromptError, match=f"2 <image> place.*{count} picture"):
            check_images(pieces, count)


def test_an_answer_that_is_to_go_on_is_cut_as_answers_are_in_training() -> None:
    messages = [_user("Hi"), {"role": "assistant", "content": "Ho\nHuman: x"}]
    pieces, images = chat_pieces(messages, system="Sing.")
    assert pieces == [TextPiece("Sing.\nHuman: Hi\nAI: "), TextPiece("Ho\n Human: x", supervised=True)]
    assert images == []
    trained = training_pieces(messages, system="Sing.")[0]
    assert trained[-1] == pieces[-1]
    empty = chat_pieces([_user("Hi"), {"role": "assistant", "content": ""}], system="Sing.")[0]
    assert empty == chat_pieces([_user("Hi")], system="Sing.")[0]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no user message"),
        ([{"role": "system", "content": "x"}], "no user message"),
        (["hello"], "message 0: a str came"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user", "content": None}], "content is NoneType"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "message 0, part 0: wanted"),
        ([{"role": "user", "content": ["x"]}], "message 0, part 0: wanted"),
        ([{"role": "user", "content": [{"type": "image"}]}], "part 0: wanted"),
        ([_user({"type": "image_url", "image_url": {"url": "/etc/passwd"}})], "image_url wants"),
        ([_user({"type": "image_url", "image_url": "data:"})], "image_url wants"),
        ([{"role": "assistant", "content": "y"}], "no user message came"),
        ([_user("x"), {"role": "assistant", "content": [_image()]}, _user("z")], "only user messages carry"),
        ([{"role": "system", "content": [_image()]}, _user("z")], "only user messages carry"),
        ([_user("x"), {"role": "system", "content": "y"}], "put it at the beginning"),
    ],
)
def test_malformed_messages(messages: list, said: str) -> None:
    with pytest.raises(PromptError, match=re.escape(said) if "*" not in said else said):
        chat_pieces(messages)


# --- training ---------------------------------------------------------------------------------------------


def _record(model: str, name: str) -> tuple[str, int, dict, dict]:
    manifest = json.loads((GOLDEN / model / "golden/manifest.json").read_text(encoding="utf-8"))
    meta = manifest["files"]["train_data"]["meta"]
    record = meta["records"][name]
    return (
        record["text"],
        len(record.get("image", [])),
        meta,
        load_file(GOLDEN / model / "golden/train_data.safetensors"),
    )


def _encode_record(model: str, name: str) -> tuple[list[int], list[bool], int]:
    text, n_images, meta, _ = _record(model, name)
    tokenizer = Tokenizer.from_file(GOLDEN / model / "checkpoint/tokenizer.model")
    pieces, images = training_pieces(parse_record_text(text, n_images, name))
    assert images == list(range(n_images))
    ids, supervised = encode_training(pieces, tokenizer, meta["media_length"], meta["max_length"], name)
    assert len(ids) == len(supervised) <= meta["max_length"] + 1
    return ids, supervised, meta["media_length"]


@pytest.mark.parametrize("name", ["mm", "text", "two_images", "empty_answer_text", "too_long_text"])
@pytest.mark.parametrize("model", ["tiny", "micro"])
def test_records_give_the_reference_ids_and_labels(model: str, name: str) -> None:
    ids, supervised, _ = _encode_record(model, name)
    _, _, meta, tensors = _record(model, name)
    wanted = tensors[f"{name}.input_ids"].tolist()
    assert ids == wanted[: len(ids)]
    assert set(wanted[len(ids) :]) <= {0}
    assert len(ids) == meta["seq_length"][name]
    # The reference masks describe the next token; position 0 has no label.
    masks = [tensors[f"{name}.{m}"] for m in ("prompt_mask", "non_padding_mask", "non_media_mask")]
    labelled = (masks[0] * masks[1] * masks[2]).bool().tolist()
    assert supervised[1:] == labelled[: len(ids) - 1]
    assert not any(labelled[len(ids) - 1 :])
    assert not supervised[0]


def _pieces_ids(*texts: str | int) -> list[int]:
    ids = [TINY.bos_id]
    for text in texts:
        ids += [text] if isinstance(text, int) else TINY.encode(text, literal=True)
    return ids


def test_a_picture_at_the_start_of_a_record_is_inserted() -> None:
    ids, supervised, rows = _encode_record("tiny", "image_first_token")
    assert ids == _pieces_ids(
        "Human: ",
        *[IMAGE_ID] * rows,
        "\nHuman: ",
        "Why is this image funny?\n",
        "AI: ",
        "The cats.",
        TINY.eos_id,
    )
    answer = len(TINY.encode("The cats.", literal=True)) + 1
    assert supervised == [False] * (len(ids) - answer) + [True] * answer


def test_an_empty_answer_supervises_eos_alone() -> None:
    ids, supervised, rows = _encode_record("tiny", "empty_answer")
    head = _pieces_ids(
        *(HEADER, "\nHuman: ", *[IMAGE_ID] * rows, "\nHuman: ", "Is there a person in the photo?\n", "AI: ")
    )
    assert ids == [
        *head,
        TINY.eos_id,
        *_pieces_ids("\nHuman: ", "Why?\n", "AI: ", "Yes.", TINY.eos_id)[1:],
    ]
    answer = len(TINY.encode("Yes.", literal=True)) + 1
    wanted = [False] * len(ids)
    wanted[len(head)] = True
    wanted[-answer:] = [True] * answer
    assert supervised == wanted


def test_a_marker_inside_a_line_is_text() -> None:
    ids, supervised, _ = _encode_record("tiny", "marker_inside_text")
    answer = "It is a name. AI: again."
    assert ids == _pieces_ids(HEADER, "\nHuman: ", "What does OpenAI: mean?\n", "AI: ", answer, TINY.eos_id)
    assert sum(supervised) == len(TINY.encode(answer, literal=True)) + 1
    assert supervised[-sum(supervised) :] == [True] * sum(supervised)


@pytest.mark.parametrize("model", ["tiny", "micro"])
def test_a_record_without_a_labelled_token_is_named(model: str) -> None:
    with pytest.raises(DataError, match="too_long_prompt_image: no answer token within max_length"):
        _encode_record(model, "too_long_prompt_image")


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("Human: <image>\nAI: x", 2, r"a\.jsonl:7: 2 picture\(s\), but 1"),
        ("Human: x\nAI: x", 1, r"a\.jsonl:7: 1 picture\(s\), but 0"),
        ("Human: hi AI: hello", 0, r"a\.jsonl:7: no line begins with"),
        ("", 0, r"a\.jsonl:7: no line begins with"),
        ("Human: look\nAI: <image>", 1, r"a\.jsonl:7: <image> inside an answer"),
    ],
)
def test_bad_records_are_named(text: str, images: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_record_text(text, images, "a.jsonl:7")


def test_record_text_becomes_messages() -> None:
    text = "Sys\nline\nHuman: <image>\nlook at <image> and\nthis\nAI:\nyes \n\nHuman: ok\nAI: "
    assert parse_record_text(text, 2) == [
        {"role": "system", "content": "Sys\nline"},
        {"role": "user", "content": [_image(0), _text("look at"), _image(1), _text("and\nthis")]},
        {"role": "assistant", "content": "\nyes \n"},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": ""},
    ]
    assert parse_record_text("Human: a <image>\nAI: b", 0)[1] == _user("a <image>")
    assert parse_record_text("Look: <image>\nHuman: <image>\nAI: b", 2)[:3] == [
        {"role": "system", "content": "Look:"},
        {"role": "user", "content": [_image(0)]},
        {"role": "user", "content": [_image(1)]},
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TYPED, TYPED), min_size=1, max_size=3))
def test_a_written_conversation_reads_back(turns: list[tuple[str, str]]) -> None:
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    pieces, _ = training_pieces(messages)
    again, _ = training_pieces(parse_record_text(_written(pieces), 0))
    assert again == pieces


def test_stage_one_samples() -> None:
    caption = TINY.encode("a red boat", literal=True)
    ids, supervised = encode_training(caption_pieces("a red boat"), TINY, ROWS, 64)
    assert ids == [TINY.bos_id, *[IMAGE_ID] * ROWS, *caption, TINY.eos_id]
    assert supervised == [False] * (1 + ROWS) + [True] * (len(caption) + 1)
    pieces = caption_pieces("a red boat", with_header=True)
    assert _written(pieces) == f"{HEADER}\nHuman: <image>\nAI: a red boat"
    ids, supervised = encode_training(pieces, TINY, ROWS, 128)
    assert ids[-len(caption) - 1 :] == [*caption, TINY.eos_id]
    assert sum(supervised) == len(caption) + 1


def test_cutting_at_max_length() -> None:
    answer = TINY.encode("a red boat on a quiet lake", literal=True)
    pieces = [TextPiece("Hi"), TextPiece("a red boat on a quiet lake", supervised=True), TextPiece("more")]
    head = 1 + len(TINY.encode("Hi", literal=True))
    for max_length in range(head, head + len(answer) + 1):
        ids, supervised = encode_training(pieces, TINY, ROWS, max_length)
        kept = min(len(answer), max_length - head)
        assert ids[head : head + kept + 1] == [*answer[:kept], TINY.eos_id]
        assert len(ids) == max_length + 1
        assert sum(supervised) == kept + 1
    with pytest.raises(DataError):
        encode_training(pieces, TINY, ROWS, head - 1)
    # A picture that does not fit ends the sample, the answer before it stays.
    pieces = [ImagePiece(), TextPiece("x", supervised=True), ImagePiece(), TextPiece("y", supervised=True)]
    used = 1 + ROWS + len(TINY.encode("x", literal=True)) + 1
    ids, _ = encode_training(pieces, TINY, ROWS, used + ROWS - 2)
    assert (len(ids), ids.count(IMAGE_ID)) == (used, ROWS)
