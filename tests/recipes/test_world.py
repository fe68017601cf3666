"""The world's scenes: captions, shares, and what the training split never shows."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from recipes.owl_nano import world
from recipes.owl_nano.world import Scene, Shape, caption, is_unseen, sample_scene


@pytest.mark.parametrize(
    ("scene", "sentence"),
    [
        (
            Scene((Shape("red", "star", 0, 0), Shape("orange", "moon", 1, 2)), "STOP", 2),
            "A red star at the top left, an orange moon at the right, the word STOP at the bottom.",
        ),
        (Scene((), "42", 0), "The number 42 at the top."),
        (Scene((Shape("orange", "cross", 1, 1),)), "An orange cross at the center."),
        (
            Scene((Shape("blue", "heart", 2, 1),), "OWL", 1),
            "A blue heart at the bottom, the word OWL at the center.",
        ),
    ],
    ids=["two-and-word", "number-only", "one", "text-center"],
)
def test_caption(scene: Scene, sentence: str) -> None:
    assert caption(scene) == sentence


@pytest.mark.parametrize(
    ("shapes", "text", "row", "said"),
    [
        ((Shape("red", "star", 1, 0), Shape("red", "star", 0, 0)), None, None, "reading order"),
        ((Shape("red", "star", 1, 0), Shape("blue", "star", 1, 0)), None, None, "distinct cells"),
        ((Shape("red", "star", 1, 0),), "STOP", 1, "row 1"),
        ((Shape("red", "star", 1, 0),), "STOP", None, "both or neither"),
        ((), None, None, "empty scene"),
    ],
    ids=["order", "same-cell", "text-row", "no-row", "empty"],
)
def test_a_scene_outside_the_world_is_refused(
    shapes: tuple[Shape, ...], text: str | None, row: int | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Scene(shapes, text, row)


@pytest.mark.parametrize(
    "wish",
    [{"n_shapes": 4}, {"n_shapes": 0, "text": False}, {"split": "test"}],
    ids=["four", "empty", "split"],
)
def test_impossible_wishes_are_refused(wish: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="want"):
        sample_scene(random.Random(0), **wish)  # type: ignore[arg-type]


def test_splits_share_no_combination() -> None:
    rng = random.Random(1)
    train = [sample_scene(rng) for _ in range(4000)]
    heldout = [sample_scene(rng, split="heldout") for _ in range(1000)]
    assert not any(is_unseen(scene) for scene in train)
    assert all(is_unseen(scene) for scene in heldout)
    seen = {(s.color, s.shape) for scene in train for s in scene.shapes}
    assert len(seen) == len(world.COLORS) * len(world.SHAPES) - len(world.HELDOUT_PAIRS)
    assert {scene.text for scene in train} == {None, *world.WORDS, *world.NUMBERS} - world.HELDOUT_TEXTS


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("n_shapes", [0, 1, 2, 3])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no-text"])
def test_wishes_are_kept(split: world.Split, n_shapes: int, text: bool) -> None:
    if n_shapes == 0 and not text:
        pytest.skip("no such scene")
    for seed in range(20):
        scene = sample_scene(random.Random(seed), n_shapes=n_shapes, text=text, split=split)
        assert len(scene.shapes) == n_shapes
        assert (scene.text is not None) == text


def test_shares() -> None:
    rng = random.Random(2)
    scenes = [sample_scene(rng) for _ in range(6000)]
    texts = [scene.text for scene in scenes if scene.text is not None]
    assert len(texts) / len(scenes) == pytest.approx(world.TEXT_SHARE, abs=0.03)
    numbers = sum(text.isdigit() for text in texts) / len(texts)
    assert numbers == pytest.approx(world.NUMBER_SHARE, abs=0.05)
    positions = Counter(s.position for scene in scenes for s in scene.shapes)
    assert len(positions) == 9
    assert min(positions.values()) > 0.8 * max(positions.values())


def test_heldout_pairs_leave_every_color_and_shape_well_known() -> None:
    colors = Counter(color for color, _ in world.HELDOUT_PAIRS)
    shapes = Counter(shape for _, shape in world.HELDOUT_PAIRS)
    assert max(colors.values()) == max(shapes.values()) == 1
    assert {digit for text in set(world.NUMBERS) - world.HELDOUT_TEXTS for digit in text} == set("0123456789")


def test_same_seed_same_scenes() -> None:
    first, second = random.Random(3), random.Random(3)
    assert [sample_scene(first) for _ in range(50)] == [sample_scene(second) for _ in range(50)]
