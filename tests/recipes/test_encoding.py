from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from owl_fast.prompts import IMAGE_ID, chat_pieces, encode
from owl_fast.tokenizer import Tokenizer
from recipes.owl_nano.dialogues import about_pair, about_picture, training_scene
from recipes.owl_nano.drills import Curriculum, crowd, recall_drill, scene_drill
from recipes.owl_nano.encoding import BOS, EOS, IGNORED, IMAGE_ROWS, Encoded, Encoder, mark_picture
from recipes.owl_nano.optimizer import muon_adamw
from recipes.owl_nano.stand_ins import StandIns
from recipes.owl_nano.statements import statements
from recipes.owl_nano.vocabulary import HEADERS, corpus, train_vocabulary
from recipes.owl_nano.world import COLOR_NAMES, POSITIONS, SHAPES, WORDS


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    train_vocabulary(corpus(1, 1500), path)
    return path


@pytest.fixture(scope="module")
def encoder(model_file: Path) -> Encoder:
    return Encoder(Tokenizer.from_file(model_file))


def test_vocabulary_is_deterministic(model_file: Path, tmp_path: Path) -> None:
    train_vocabulary(corpus(1, 1500), tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == model_file.read_bytes()


@pytest.mark.parametrize("word", [*COLOR_NAMES, *SHAPES, *(name for row in POSITIONS for name in row)])
def test_words_of_the_world_are_one_piece(encoder: Encoder, word: str) -> None:
    assert len(encoder.text(word)) == 1
    assert encoder.text(f"the {word}.")[1] == encoder.text(word)[0]


@pytest.mark.parametrize("word", WORDS)
def test_printed_words_are_spelled(encoder: Encoder, word: str) -> None:
    letters = [encoder.text(letter)[-1] for letter in word]
    assert encoder.text(word)[1:] == letters
    assert encoder.text(f"The text says {word}.")[-len(word) - 1 : -1] == letters


def test_header_is_one_piece_and_text_survives(encoder: Encoder) -> None:
    assert len(encoder.text(HEADERS[0])) == 1
    text = f"{HEADERS[0]}\nHuman: De quelle couleur est l'étoile ? ひし形 ~ 42"
    assert encoder.tokenizer.decode(encoder.text(text)) == text


def test_chat_form_is_what_the_engine_sends(encoder: Encoder) -> None:
    rng = random.Random(0)
    for _ in range(30):
        dialogue = about_picture(rng, training_scene(rng))
        encoded = encoder.dialogue(dialogue, "chat", mark_picture)
        messages = dialogue.messages()
        prompt = encode(chat_pieces(messages[:-1])[0], encoder.tokenizer, IMAGE_ROWS)
        answer = [*encoder.text(dialogue.turns[-1].answer), EOS]
        assert encoded.ids == prompt + answer
        assert encoded.labels == [IGNORED] * len(prompt) + answer


def test_training_form_supervises_every_answer(encoder: Encoder) -> None:
    rng = random.Random(0)
    dialogue = about_pair(rng, training_scene(rng), training_scene(rng))
    encoded = encoder.dialogue(dialogue, "training", mark_picture)
    answers = [i for turn in dialogue.turns for i in (*encoder.text(turn.answer), EOS)]
    assert [label for label in encoded.labels if label != IGNORED] == answers
    assert encoded.ids.count(IMAGE_ID) == 2 * IMAGE_ROWS


def test_statements_supervise_the_decided_words(encoder: Encoder) -> None:
    rng = random.Random(0)
    scene = training_scene(rng)
    for direction, sentence in statements(rng, scene, 40):
        result = Encoded()
        encoder.sentences(result, [(direction, sentence)])
        wanted = next(text for text, decided in sentence if decided)
        supervised = [label for label in result.labels if label != IGNORED]
        assert encoder.tokenizer.decode(supervised).strip() == wanted
        assert result.kinds == [direction] * len(supervised)


def test_stand_in_rows_hold_every_object(encoder: Encoder) -> None:
    rng = random.Random(0)
    for _ in range(50):
        scene = crowd(rng)
        result = Encoded()
        StandIns(encoder, rng).as_rows(result, scene)
        assert len(result.rows) == IMAGE_ROWS == result.ids.count(IMAGE_ID)
        for shape in scene.shapes:
            words = (shape.color, shape.shape, shape.position)
            assert tuple(encoder.text(word)[-1] for word in words) in result.rows


def test_drills_supervise_only_looked_up_tokens(encoder: Encoder) -> None:
    rng = random.Random(0)
    stand_ins = StandIns(encoder, rng)
    for _ in range(30):
        drill = scene_drill(rng, encoder, stand_ins, Curriculum().weights())
        assert drill.ids[0] == BOS
        assert 0 < len(drill.kinds) < len(drill.ids) / 2
        recall = recall_drill(rng, tuple(range(300, 400)))
        supervised = [label for label in recall.labels if label != IGNORED]
        assert supervised
        assert set(supervised) <= set(recall.ids)


def test_curriculum_moves_on_when_a_direction_is_mastered() -> None:
    curriculum = Curriculum()
    first, second = list(curriculum.rates)[:2]
    before = curriculum.weights()
    assert before[first] > before[second]
    curriculum.record([first] * 3000, [True] * 3000)
    after = curriculum.weights()
    assert after[second] > after[first] > 0


def test_muon_adamw_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4)
    x, target = torch.randn(64, 8), torch.randn(64, 8) @ torch.randn(8, 4)
    optimizer = muon_adamw(dict(layer.named_parameters()), lr=0.02, adamw_lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
