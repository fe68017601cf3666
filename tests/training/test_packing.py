"""Labels, packing and what is refused; the corrected training records."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from owl_fast.errors import DataError, UnsupportedError
from owl_fast.prompts import parse_record_text
from owl_fast.tokenizer import Tokenizer
from owl_fast.training import Caption, EncodedSample, Sample, encode_sample, pack
from owl_fast.training.objective import token_loss
from owl_fast.training.packing import IGNORED
from tests.golden_data import Golden
from tests.training.owls import ROWS, made_up, small_owl

GOLDEN = Golden("micro")
PICTURE = torch.zeros(3, 8, 8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(GOLDEN.checkpoint / "tokenizer.model")


def record(name: str) -> Sample:
    raw = GOLDEN.meta("train_data")["records"][name]
    images = [PICTURE] * len(raw.get("image", []))
    return Sample(parse_record_text(raw["text"], len(images), name), images, name)


def answers(sample: EncodedSample, tokenizer: Tokenizer) -> list[str]:
    """The labelled stretches as text; "</s>" for EOS."""
    found = [""]
    for label in sample.labels:
        if label == tokenizer.eos_id:
            found[-1] += "</s>"
            found.append("")
        elif label != IGNORED:
            found[-1] += tokenizer.decode([label]) if not found[-1] else " " + tokenizer.decode([label])
    return [text for text in found if text]


def test_one_picture_first_is_inserted(tokenizer: Tokenizer) -> None:
    sample = encode_sample(record("image_first_token"), tokenizer, ROWS, 112)
    assert [i for i in sample.token_ids if i < 0] == [-1] * ROWS
    assert len(sample.visual) == 1
    assert answers(sample, tokenizer)[0].endswith("</s>")


def test_empty_answer_teaches_eos_alone(tokenizer: Tokenizer) -> None:
    sample = encode_sample(record("empty_answer"), tokenizer, ROWS, 112)
    first = next(i for i, label in enumerate(sample.labels) if label != IGNORED)
    assert sample.labels[first] == tokenizer.eos_id
    assert sample.labels[first + 1] == IGNORED
    assert sum(label == tokenizer.eos_id for label in sample.labels) == 2


def test_marker_inside_text_begins_no_answer(tokenizer: Tokenizer) -> None:
    sample = encode_sample(record("marker_inside_text"), tokenizer, ROWS, 112)
    assert sum(label == tokenizer.eos_id for label in sample.labels) == 1


def test_no_label_left_names_the_record(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="too_long_prompt_image"):
        encode_sample(record("too_long_prompt_image"), tokenizer, ROWS, 112)


def test_caption_is_bos_picture_caption_eos(tokenizer: Tokenizer) -> None:
    sample = encode_sample(Caption(PICTURE, "two owls"), tokenizer, ROWS, 112)
    words = tokenizer.encode("two owls", literal=True)
    assert list(sample.token_ids) == [tokenizer.bos_id, *[-1] * ROWS, *words, tokenizer.eos_id]
    assert list(sample.labels) == [IGNORED] * (1 + ROWS) + [*words, tokenizer.eos_id]


def test_pictures_by_number_and_a_look(tokenizer: Tokenizer) -> None:
    image = {"role": "user", "content": [{"type": "image", "image": 0}]}
    messages = [image, {"role": "assistant", "content": "yes"}]
    sample = encode_sample(
        Sample(messages, ["owl"]), tokenizer, ROWS, 112, look=lambda name: torch.full((2, 3), len(name))
    )
    assert sample.visual[0].tolist() == [[3] * 3] * 2
    with pytest.raises(DataError, match="17: picture 0 of 0"):
        encode_sample(Sample(messages, [], "train.jsonl:17"), tokenizer, ROWS, 112)


def test_rows_predict_the_next_label() -> None:
    samples = [made_up(0), made_up(1, pictures=2), made_up(2, pictures=1)]
    batch = pack(samples, ROWS)
    flat_labels = [label for sample in samples for label in sample.labels]
    assert batch.packed.bounds == (0, *(sum(len(s.token_ids) for s in samples[: i + 1]) for i in range(3)))
    assert [flat_labels[row + 1] for row in batch.rows] == batch.targets.tolist()
    assert batch.labelled == sum(label != IGNORED for label in flat_labels)
    assert batch.packed.positions.tolist() == [i for s in samples for i in range(len(s.token_ids))]
    assert batch.pixels is not None
    assert batch.pixels.shape == (3, 3, 8, 8)
    assert batch.packed.visual_index is not None
    flat = [i for s in samples for i in s.token_ids]
    assert batch.packed.visual_index.tolist() == [i for i, token in enumerate(flat) if token < 0]


@torch.no_grad()
def test_loss_of_a_pack_is_the_sum_of_its_samples() -> None:
    model = small_owl()
    samples = [made_up(i, pictures=i % 3) for i in range(6)]
    together = token_loss(model, pack(samples, ROWS)).item()
    alone = sum(token_loss(model, pack([sample], ROWS)).item() for sample in samples)
    assert together == pytest.approx(alone, rel=1e-5)


@torch.no_grad()
def test_cached_features_stand_for_pixels() -> None:
    model, sample = small_owl(), made_up(3, pictures=2)
    features = model.vision_model(torch.stack(list(sample.visual)))
    cached = dataclasses.replace(sample, visual=list(features))
    model.vision_model.requires_grad_(False)
    losses = [token_loss(model, pack([s], ROWS)).item() for s in (sample, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [IGNORED] * 8}, "token ids but 8 labels"),
        ({"visual": ()}, "picture rows for 0 pictures"),
        ({"visual": (PICTURE, PICTURE)}, "picture rows for 2 pictures"),
        ({"visual": (torch.zeros(8),)}, r"shapes \[\(8,\)\]"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack([dataclasses.replace(made_up(5, pictures=1), **change)], ROWS)  # type: ignore[arg-type]


def test_a_label_on_the_first_token_does_not_count() -> None:
    sample = EncodedSample([1, 5, 6], [1, IGNORED, IGNORED], record="train.jsonl:3")
    with pytest.raises(DataError, match="jsonl:3: no labelled token"):
        pack([sample], ROWS)


def test_pixels_and_features_come_apart_again() -> None:
    samples = [made_up(0, pictures=1), made_up(1, pictures=2, features=True), made_up(2, pictures=1)]
    batch = pack(samples, ROWS)
    assert batch.from_pixels is not None
    assert batch.from_pixels.tolist() == [True, False, False, True]
    assert batch.pixels is not None
    assert batch.features is not None
    assert torch.equal(batch.pixels, torch.stack([samples[0].visual[0], samples[2].visual[0]]))
    assert torch.equal(batch.features, torch.stack(list(samples[1].visual)))
    with pytest.raises(UnsupportedError, match="made-up 0: some pictures came as pixels"):
        token_loss(small_owl(), batch)
