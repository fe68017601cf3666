"""The phases of the recipe, each for a few updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer
from recipes.owl_nano import pool as pools
from recipes.owl_nano.drills import Curriculum
from recipes.owl_nano.encoding import Encoder
from recipes.owl_nano.initialise import initialise, sin_cos_positions
from recipes.owl_nano.language import exact_matches, gate_sets, train_language
from recipes.owl_nano.pool import LABEL_KINDS, Pool, draw_pool
from recipes.owl_nano.settings import CONFIG, Schedule
from recipes.owl_nano.vocabulary import corpus, train_vocabulary
from recipes.owl_nano.warmup import CLASSES, NAMES, TURN, Heads, warm_up

FEW = Schedule(steps=2, batch=3, lr=0.005, warmup=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    train_vocabulary(corpus(1, 1500), path)
    return Encoder(Tokenizer.from_file(path))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    patch = pytest.MonkeyPatch()
    patch.setattr(pools, "SHARD", 12)
    folder = tmp_path_factory.mktemp("pictures")
    draw_pool(folder, range(2), 5)
    yield Pool(folder)
    patch.undo()


@pytest.fixture
def model() -> Owl:
    model = Owl(CONFIG)
    initialise(model, 3)
    return model


def changed(before: dict[str, torch.Tensor], model: Owl) -> set[str]:
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def copy(model: Owl) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_first_layer_looks_back(model: Owl) -> None:
    """Scores of the look-back heads, from the constant dimension alone, peak at their distance."""
    attention = model.language_model.model.layers[0].self_attn
    width, head_dim = CONFIG.llama.hidden_size, CONFIG.llama.head_dim
    constant = attention.qkv_proj.weight[:, 0]
    frequency = CONFIG.llama.rope_theta ** (-torch.arange(head_dim // 2) / (head_dim // 2))
    for head, distance in enumerate((1, 1, 2, 2, 3)):
        start = head * head_dim
        query = torch.view_as_complex(constant[start : start + head_dim].detach().view(2, -1).T.contiguous())
        key = torch.view_as_complex(
            constant[width + start : width + start + head_dim].detach().view(2, -1).T.contiguous()
        )
        turns = torch.polar(torch.ones(1), torch.arange(8)[:, None] * frequency)
        scores = (query * turns * key.conj()).real.sum(-1)
        assert int(scores.argmax()) == distance


def test_positions_tell_patches_apart() -> None:
    positions = sin_cos_positions(8, 192)
    assert positions.shape == (64, 192)
    assert (torch.cdist(positions, positions) + 10 * torch.eye(64)).min() > 0.5


def test_pool_resumes_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SHARD", 4)
    for name in ("a", "b"):
        draw_pool(tmp_path / name, range(2), 7)
    (tmp_path / "a" / "000.npz").unlink()
    draw_pool(tmp_path / "a", range(2), 7)
    first, second = Pool(tmp_path / "a"), Pool(tmp_path / "b")
    assert first.scenes == second.scenes
    assert torch.equal(first.pictures([0, 5]), second.pictures([0, 5]))


def test_warm_up_trains_the_tower_alone(model: Owl, pool: Pool, tmp_path: Path) -> None:
    before = copy(model)
    warm_up(model, pool, FEW, tmp_path, 1)
    names = changed(before, model)
    assert names
    assert all(name.startswith("vision_model.") for name in names)


def test_patch_labels_fit_the_heads(pool: Pool) -> None:
    labels = pool.patch_labels(list(range(len(pool))))
    assert labels.shape[1:] == (LABEL_KINDS, 64)
    assert all(int(labels[:, kind].max()) < CLASSES[kind] for kind in range(LABEL_KINDS))
    assert labels[:, TURN].amax(1).tolist() == [len(scene.shapes) for scene in pool.scenes]
    loss, rates = Heads(16).loss(torch.randn(len(labels), 65, 16), labels)
    assert torch.isfinite(loss)
    assert len(rates) == len(NAMES)


def test_language_phase_trains_the_llama_alone(model: Owl, encoder: Encoder, tmp_path: Path) -> None:
    before = copy(model)
    train_language(model, encoder, FEW, 0.5, tmp_path, 1, Curriculum())
    names = changed(before, model)
    assert names
    assert all(name.startswith("language_model.") for name in names)


def test_exact_matches_of_a_model_that_knows_nothing(model: Owl, encoder: Encoder) -> None:
    sets = gate_sets(encoder, 3, 1, as_rows=True)
    assert exact_matches(model, sets["where"]) == 0.0
