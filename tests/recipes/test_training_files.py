"""Stages 1 and 2: the files that are written, what the package reads in them, and the phases around them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from owl_fast import Engine
from owl_fast.checkpoints import read_tensors, weights_sha256
from owl_fast.images import ImageProcessor
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.datasets import ReadOptions, open_datasets
from owl_fast.training.packing import EncodedSample, encode_sample
from owl_fast.training.ranks import Ranks
from owl_fast.training.sample import Caption, Sample
from recipes.owl_nano import pool as pools
from recipes.owl_nano import settings, training_files
from recipes.owl_nano.dialogues import Dialogue
from recipes.owl_nano.encoding import BOS, EOS, Encoded, Encoder, mark_picture
from recipes.owl_nano.phases import Phases
from recipes.owl_nano.pool import Pool, draw_pool
from recipes.owl_nano.questions import Turn
from recipes.owl_nano.settings import IMAGE_SIDE
from recipes.owl_nano.training_files import write_data
from recipes.owl_nano.vocabulary import corpus, train_vocabulary

KINDS = ("captions", "questions", "picture", "pair", "text")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with vocabulary and 24 pictures."""
    folder, patch = tmp_path_factory.mktemp("run"), pytest.MonkeyPatch()
    train_vocabulary(corpus(1, 1500), folder / "tokenizer.model")
    patch.setattr(pools, "SHARD", 12)
    patch.setattr(training_files, "HELD_OUT_PICTURES", 8)
    patch.setattr(training_files, "HELD_OUT_ROWS", 4)
    draw_pool(folder / "pictures", range(2), 5)
    write_data(Pool(folder / "pictures"), folder / "data", dict.fromkeys(KINDS, 10), 3)
    yield folder
    patch.undo()


def records(run: Path, name: str) -> list[Sample | Caption]:
    (data,) = open_datasets([str(run / "data" / f"{name}.jsonl")], ReadOptions())
    return [data[number] for number in range(len(data))]


def encoded(run: Path, record: Sample | Caption) -> EncodedSample:
    tokenizer = Tokenizer.from_file(run / "tokenizer.model")
    processor = ImageProcessor(IMAGE_SIDE)
    return encode_sample(
        record, tokenizer, settings.QUERIES + 1, 2048, lambda picture: processor(picture, training=True)
    )


@pytest.mark.parametrize("name", KINDS)
def test_rows_and_held_out_rows_are_there(run: Path, name: str) -> None:
    pictures = {"pair": 2, "text": 0}.get(name, 1)
    for prefix, count in (("", 10), ("held-out-", 4)):
        found = records(run, prefix + name)
        assert len(found) == count
        assert all(len(encoded(run, record).visual) == pictures for record in found)


def test_pictures_are_the_pools(run: Path) -> None:
    pool = Pool(run / "pictures")
    row = json.loads((run / "data" / "captions.jsonl").read_text().splitlines()[0])
    number = int(Path(row["image"]).stem)
    pixels = encoded(run, records(run, "captions")[0]).visual[0]
    assert torch.allclose(pixels, pool.pictures([number])[0], atol=1e-5)


def test_no_question_of_stage_1_is_answered_by_copying(run: Path) -> None:
    for record in records(run, "questions"):
        assert isinstance(record, Sample)
        answers = [message["content"] for message in record.messages[1::2]]
        told = [answer for answer in answers if answer not in ("Yes.", "No.")]
        assert len(set(told)) == len(told)


def test_captions_become_the_ids_of_the_language_phase(run: Path) -> None:
    encoder = Encoder(Tokenizer.from_file(run / "tokenizer.model"))
    for record in records(run, "captions"):
        assert isinstance(record, Caption)
        expected = Encoded()
        expected.add([BOS])
        mark_picture(expected, Pool(run / "pictures").scenes[0])
        expected.add([*encoder.text(record.text), EOS], supervised=True)
        found = encoded(run, record)
        assert (found.token_ids, found.labels) == (expected.ids, expected.labels)


@pytest.mark.parametrize("name", ["questions", "picture", "pair", "text"])
def test_conversations_become_the_ids_of_the_language_phase(run: Path, name: str) -> None:
    encoder = Encoder(Tokenizer.from_file(run / "tokenizer.model"))
    scenes = Pool(run / "pictures").scenes
    for record in records(run, name):
        assert isinstance(record, Sample)
        texts = [
            m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"]
            for m in record.messages
        ]
        turns = tuple(Turn("", *pair, ()) for pair in zip(texts[::2], texts[1::2], strict=True))
        shown = {"pair": 2, "text": 0}.get(name, 1)
        expected = encoder.dialogue(Dialogue(tuple(scenes[:shown]), turns), "training", mark_picture)
        found = encoded(run, record)
        assert (found.token_ids, found.labels) == (expected.ids, expected.labels)


def test_the_phases_from_files_to_a_folder_to_bundle(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "STAGE1", settings.Schedule(steps=2, batch=4, lr=0.003, warmup=1))
    monkeypatch.setattr(settings, "STAGE2", settings.Schedule(steps=2, batch=4, lr=0.0015, warmup=1))
    phases = Phases(run, 1.0, 1, Ranks())
    model = phases._model()
    torch.save(model.state_dict(), run / "language.pt")
    torch.save(model.vision_model.state_dict(), run / "warmup.pt")
    for phase in (phases.data, phases.stage1, phases.stage2, phases.merge):
        phase()
    start, one = (read_tensors(run / folder / "model.safetensors") for folder in ("start", "stage1/final"))
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], one[name])}
    assert moved == {"vision_model", "abstractor", "query_tokens"}
    base = json.loads((run / "owl-nano" / "adapter" / "base.json").read_text())
    assert base == {
        "name": "owl-nano, stage 1",
        "sha256": weights_sha256(run / "stage1" / "final"),
        "quantization": None,
    }
    weights = read_tensors(run / "owl-nano" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    engine = Engine.from_pretrained(run / "owl-nano", device="cpu")
    engine.load_adapter("stage 2", run / "owl-nano" / "adapter", check_base=False)
