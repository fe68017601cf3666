"""Both drawing programs: the right thing, in the right color, in the right place."""

from __future__ import annotations

import ast
import colorsys
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from recipes.owl_nano import draw, draw_blind, world
from recipes.owl_nano.typefaces import load_face
from recipes.owl_nano.world import Scene, Shape, sample_scene

PROGRAMS = {"draw": draw.draw, "draw_blind": draw_blind.draw}
CALM: dict[str, Any] = {
    "noise": 0.0,
    "blur": 0.0,
    "jpeg_quality": None,
    "outline_share": 0.0,
    "supersample": 4,
}


@pytest.fixture
def faces() -> None:
    """Skip where the DejaVu faces are not installed."""
    try:
        load_face("DejaVuSans-BoldOblique.ttf", 20)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def colored(picture: Image.Image) -> NDArray[np.bool_]:
    """Where the picture is clearly not grey."""
    levels = np.asarray(picture.filter(ImageFilter.MedianFilter(5)), dtype=int)
    return levels.max(2) - levels.min(2) > 50


def cropped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's bounding box."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


@pytest.mark.parametrize("size", [112, 160, 224])
@pytest.mark.parametrize("program", PROGRAMS)
def test_square_rgb_and_repeatable(faces: None, program: str, size: int) -> None:
    for seed in range(8):
        scene = sample_scene(random.Random(seed), text=seed % 2 == 0)
        first, second = (PROGRAMS[program](scene, random.Random(seed), size) for _ in range(2))
        assert (first.mode, first.size) == ("RGB", (size, size))
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("color", world.COLORS)
def test_color_and_cell(program: str, color: str) -> None:
    for seed, shape in enumerate(world.SHAPES):
        row, col = divmod(seed, 3)
        picture = PROGRAMS[program](Scene((Shape(color, shape, row, col),)), random.Random(seed))
        mask = colored(picture)
        y, x = (float(np.mean(where)) for where in np.nonzero(mask))
        assert (int(y * 3 / 112), int(x * 3 / 112)) == (row, col)
        red, green, blue = np.median(np.asarray(picture)[mask], axis=0) / 255
        hue = colorsys.rgb_to_hsv(red, green, blue)[0] * 360
        low, high = world.COLORS[color].hue
        assert min(abs((hue - low + 180) % 360 - 180), abs((hue - high + 180) % 360 - 180)) < (high - low) + 8
        assert -8 <= (hue - low + 180) % 360 - 180 <= high - low + 8


@pytest.mark.parametrize("program", PROGRAMS)
def test_orientation_of_the_shapes(program: str) -> None:
    def width(mask: NDArray[np.bool_], share: float) -> float:
        return float(mask[int(share * (mask.shape[0] - 1))].mean())

    for seed in range(6):
        masks = {
            name: cropped(
                colored(PROGRAMS[program](Scene((Shape("red", name, 1, 1),)), random.Random(seed), 160))
            )
            for name in world.SHAPES
        }
        assert width(masks["heart"], 0.3) > 2 * width(masks["heart"], 0.9)  # point down
        assert width(masks["triangle"], 0.8) > 1.5 * width(masks["triangle"], 0.2)  # point up
        moon = masks["moon"]
        assert moon[moon.shape[0] // 2, int(0.15 * moon.shape[1])]
        assert not moon[moon.shape[0] // 2, int(0.8 * moon.shape[1])]  # open to the right
        diamond, square = masks["diamond"].shape, masks["square"].shape
        assert diamond[0] > 1.2 * diamond[1]
        assert square[0] == pytest.approx(square[1], rel=0.1)
        assert masks["star"].mean() < 0.6 < 0.7 < masks["circle"].mean()
        assert width(masks["star"], 0.05) < 0.2  # one point up
        assert masks["cross"].mean() < 0.7


def test_layout_says_where_the_shapes_are() -> None:
    for seed in range(30):
        scene = sample_scene(random.Random(seed), text=False)
        picture, layout = draw.draw_with_layout(scene, random.Random(seed), 160, **CALM)
        drawn = Image.new("L", (160, 160))
        for shape, outline in zip(scene.shapes, layout.outlines, strict=True):
            points = np.array(outline)
            assert points.min() >= 0
            assert points.max() <= 112
            middle = (points.min(0) + points.max(0)) / 2
            assert (int(middle[1] * 3 / 112), int(middle[0] * 3 / 112)) == (shape.row, shape.col)
            draw.ImageDraw.Draw(drawn).polygon([tuple(p) for p in points * 160 / 112], fill=1)
        named, found = np.asarray(drawn) == 1, colored(picture)
        assert (named & found).sum() > 0.85 * (named | found).sum()


@pytest.mark.parametrize("face", draw.FACES)
@pytest.mark.parametrize("slant", [0.0, 0.2], ids=["upright", "slanted"])
def test_letter_boxes_hold_the_ink(faces: None, face: str, slant: float) -> None:
    for seed, text in enumerate(("RIGHT", "UP", "77", "MUSIC", "WATER")):
        scene = Scene((), text, seed % 3)
        picture, layout = draw.draw_with_layout(
            scene, random.Random(seed), **CALM, face=face, slant=slant, light=True, gradient="flat"
        )
        levels = np.asarray(picture.convert("L"), dtype=int)
        ink = levels < levels.max() - 50
        boxes = Image.new("L", (112, 112))
        for box in layout.letter_boxes:
            draw.ImageDraw.Draw(boxes).polygon(list(box), fill=1)
        assert len(layout.letter_boxes) == len(text)
        assert np.array(layout.letter_boxes).min() > 0
        assert np.array(layout.letter_boxes).max() < 112
        inside = ink & (np.asarray(boxes) == 1)
        assert inside.sum() > 0.9 * ink.sum() > 50
        columns = np.array(layout.letter_boxes).mean(1)[:, 0]
        assert (np.diff(columns) > 5).all()


def test_patch_labels_of_a_known_layout() -> None:
    scene = Scene((Shape("blue", "square", 0, 0), Shape("red", "heart", 2, 2)), "A7", 1)
    layout = draw.Layout(
        outlines=(
            ((0, 0), (28, 0), (28, 14), (0, 14)),  # two patches of the first row
            ((98, 98), (112, 98), (112, 99), (98, 99)),  # too little of the last patch
        ),
        letter_boxes=(((42, 42), (56, 42), (56, 56), (42, 56)), ((56, 42), (66, 42), (66, 56), (56, 56))),
    )
    labels = draw.patch_labels(scene, layout)
    want = np.zeros((3, 8, 8), dtype=np.int64)
    want[0, 0, :2] = 1 + world.SHAPES.index("square")
    want[1, 0, :2] = 1 + world.COLOR_NAMES.index("blue")
    want[2, 3, 3] = 1 + draw.CHARACTERS.index("A")
    want[2, 3, 4] = 1 + draw.CHARACTERS.index("7")
    np.testing.assert_array_equal(labels, want)


def test_every_drawn_thing_is_labelled(faces: None) -> None:
    for seed in range(60):
        scene = sample_scene(random.Random(seed))
        labels = draw.patch_labels(scene, draw.draw_with_layout(scene, random.Random(seed))[1])
        assert set(np.unique(labels[0])) - {0} == {1 + world.SHAPES.index(s.shape) for s in scene.shapes}
        assert set(np.unique(labels[1])) - {0} == {1 + world.COLOR_NAMES.index(s.color) for s in scene.shapes}
        assert ((labels[0] > 0) == (labels[1] > 0)).all()
        characters = {1 + draw.CHARACTERS.index(c) for c in scene.text or ""}
        assert set(np.unique(labels[2])) - {0} <= characters
        assert (labels[2].max() > 0) == (scene.text is not None)


def test_a_misspelt_style_is_an_error() -> None:
    scene = Scene((Shape("red", "star", 0, 0),))
    with pytest.raises(TypeError, match="nois"):
        draw.draw(scene, random.Random(0), nois=1.0)


def test_a_missing_typeface_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"pip install '\.\[recipe\]'"):
        load_face("NoSuchFace.ttf", 20)


def test_the_blind_program_shares_no_drawing_code() -> None:
    tree = ast.parse(Path(draw_blind.__file__).read_text(encoding="utf-8"))
    sources = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("recipes")
        for alias in node.names
    }
    ours = {"recipes.owl_nano.world", "recipes.owl_nano.world.Scene", "recipes.owl_nano.world.Shape"}
    assert sources == ours | {"recipes.owl_nano.typefaces.load_face"}
    assert not {face for face, _ in draw.FACES.values()} & set(draw_blind.FACES)
