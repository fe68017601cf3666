"""The blind pictures: a second drawing program, so that a test of the world does not reward one renderer.

It shares no drawing code with `draw`. Shapes are signed distances over a fine grid, letters come from oblique
faces the training pictures never use, and the picture is averaged down. Lengths are pixels of a 112 x 112
picture; `fine` counts grid points per such pixel. y points down.
"""

from __future__ import annotations

import colorsys
import io
import random
from collections.abc import Callable
from math import cos, hypot, pi, radians, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from recipes.owl_nano import world
from recipes.owl_nano.typefaces import load_face
from recipes.owl_nano.world import Scene, Shape

Field = NDArray[np.floating[Any]]

FACES = ("DejaVuSans-BoldOblique.ttf", "DejaVuSerif-BoldItalic.ttf", "DejaVuSansMono-BoldOblique.ttf")
GRID = 3  # grid points per pixel and axis
EDGE = 0.35  # half-width of a shape's soft edge, pixels of the finished picture


def draw(scene: Scene, rng: random.Random, size: int = world.PICTURE_SIZE) -> Image.Image:
    """Draw `scene` as a square RGB picture of `size` pixels; the same state of `rng` gives the same picture.

    Raises FileNotFoundError when the scene holds a text and the DejaVu faces are not installed.
    """
    fine = size * GRID / world.PICTURE_SIZE
    axis = (np.arange(size * GRID) + 0.5) / fine
    x, y = axis[None, :], axis[:, None]
    light = rng.random() < 0.5
    picture = _ground(rng, x, y, light)
    single = len(scene.shapes) == 1 and scene.text is None
    edge = EDGE * GRID / fine
    for shape in scene.shapes:
        distance = _distance(rng, shape, single, x, y)
        _lay(picture, np.clip(0.5 - distance / (2 * edge), 0, 1), _shade(rng, shape.color, x, y))
        if rng.random() < world.OUTLINE_SHARE:
            line = np.clip(0.5 - (np.abs(distance) - rng.uniform(0.5, 0.8)) / (2 * edge), 0, 1)
            _lay(picture, line, _ink(rng, light))
    if scene.text is not None and scene.text_row is not None:
        _lay(picture, _letters(rng, scene.text, scene.text_row, size * GRID, fine), _ink(rng, light))
    coarse = picture.reshape(size, GRID, size, GRID, 3).mean((1, 3))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(size=coarse.shape)
    levels = np.clip(np.rint(coarse + rng.uniform(*world.NOISE_SIGMA) * noise), 0, 255).astype(np.uint8)
    return _stored(rng, Image.fromarray(levels))


def _ground(rng: random.Random, x: Field, y: Field, light: bool) -> Field:
    """The near-grey background, flat, linear or round: (height, width, 3) levels."""
    level = rng.uniform(*(world.LIGHT_BACKGROUND if light else world.DARK_BACKGROUND))
    tint = np.array([rng.uniform(-world.BACKGROUND_TINT, world.BACKGROUND_TINT) for _ in range(3)])
    kind, span = rng.randrange(3), rng.uniform(-0.5, 0.5) * world.GRADIENT_LEVELS
    u, v = 2 * x / world.PICTURE_SIZE - 1, 2 * y / world.PICTURE_SIZE - 1  # -1..1
    course: Field = np.zeros((y.size, x.size))
    if kind == 1:
        angle = rng.uniform(0, 2 * pi)
        course = (cos(angle) * u + sin(angle) * v) / (abs(cos(angle)) + abs(sin(angle)))
    elif kind == 2:
        course = 1 - (u * u + v * v)
    levels: Field = (level + span * course)[:, :, None] + tint
    return levels


def _shade(rng: random.Random, color: str, x: Field, y: Field) -> Field:
    """A shade of the color, a little brighter towards one side: (height, width, 3) levels."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in world.COLORS[color])
    angle, change = rng.uniform(0, 2 * pi), rng.uniform(0, world.FILL_VARIATION)
    wave = 1 + change * np.sin((cos(angle) * x + sin(angle) * y) / 8 + rng.uniform(0, 2 * pi))
    rgb = np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)) * 255
    shaded: Field = np.clip(wave[:, :, None] * rgb, 0, 255)
    return shaded


def _ink(rng: random.Random, light: bool) -> Field:
    """The color of letters and outlines: near black on light ground, near white on dark."""
    return np.full(3, rng.uniform(*world.TEXT_COLORS["light" if light else "dark"]))


def _lay(picture: Field, cover: Field, paint: Field) -> None:
    """Lay paint over the picture where cover (0..1) says."""
    picture += cover[:, :, None] * (paint - picture)


def _distance(rng: random.Random, shape: Shape, single: bool, x: Field, y: Field) -> Field:
    """Signed distance to the shape placed in its cell, negative inside, in pixels of a 112 x 112 picture."""
    low, high = world.SINGLE_RADIUS if single else world.RADIUS
    radius = rng.triangular(low, high)
    cell = world.PICTURE_SIZE / 3
    jitter = world.CENTER_JITTER
    margin = radius + 1
    cx = np.clip(cell * (shape.col + 0.5) + rng.uniform(-jitter, jitter), margin, world.PICTURE_SIZE - margin)
    cy = np.clip(cell * (shape.row + 0.5) + rng.uniform(-jitter, jitter), margin, world.PICTURE_SIZE - margin)
    angle = radians(rng.uniform(-world.MAX_ROTATION, world.MAX_ROTATION))
    u = (cos(angle) * (x - cx) + sin(angle) * (y - cy)) / radius
    v = (cos(angle) * (y - cy) - sin(angle) * (x - cx)) / radius
    distance: Field = radius * _DISTANCES[shape.shape](rng, u, v)
    return distance


# Signed distances (or close bounds of them near the edge) to shapes of circumscribed radius about 1.


def _circle(_: random.Random, u: Field, v: Field) -> Field:
    distance: Field = np.hypot(u, v) - 1
    return distance


def _square(_: random.Random, u: Field, v: Field) -> Field:
    distance: Field = np.maximum(abs(u), abs(v)) - 0.5**0.5
    return distance


def _triangle(rng: random.Random, u: Field, v: Field) -> Field:
    base = rng.uniform(0.45, 0.6)  # height of the base below the center
    half = (1 - base * base) ** 0.5
    side = ((1 + base) * abs(u) - half * (v + 1)) / hypot(1 + base, half)
    distance: Field = np.maximum(side, v - base)
    return distance


def _star(rng: random.Random, u: Field, v: Field) -> Field:
    inner = rng.uniform(*world.STAR_INNER)
    sector = np.abs((np.arctan2(u, -v) + pi / 5) % (2 * pi / 5) - pi / 5)  # angle from the nearest tip
    along, aside = np.hypot(u, v) * np.cos(sector), np.hypot(u, v) * np.sin(sector)
    ix, iy = inner * cos(pi / 5), inner * sin(pi / 5)  # the notch beside the tip at (1, 0)
    edge: Field = (iy * (along - 1) + (1 - ix) * aside) / hypot(iy, 1 - ix)
    return edge


def _heart(rng: random.Random, u: Field, v: Field) -> Field:
    """Two discs and the wedge below them, whose sides touch the discs."""
    aside, above, disc, tip = rng.uniform(0.4, 0.45), 0.35, 0.52, 0.98
    u = abs(u)
    lobe = np.hypot(u - aside, v + above) - disc
    turn = np.arctan2(tip + above, -aside) - np.arccos(disc / hypot(aside, tip + above))
    nx, ny = cos(turn), sin(turn)  # outward normal of the wedge's side
    wedge = nx * u + ny * (v - tip)
    slope = disc * ny / (aside + disc * nx)  # from between the discs to where side and disc touch
    distance: Field = np.minimum(lobe, np.maximum(wedge, slope * u - (v + above)))
    return distance


def _cross(rng: random.Random, u: Field, v: Field) -> Field:
    arm, length = rng.uniform(*world.CROSS_ARM), 0.95
    u, v = abs(u), abs(v)
    distance: Field = np.minimum(np.maximum(u - arm, v - length), np.maximum(u - length, v - arm))
    return distance


def _diamond(rng: random.Random, u: Field, v: Field) -> Field:
    width = rng.uniform(*world.DIAMOND_WIDTH)
    distance: Field = (abs(u) + width * abs(v) - width) / hypot(1, width)
    return distance


def _moon(rng: random.Random, u: Field, v: Field) -> Field:
    shift, bite = rng.uniform(0.38, 0.48), rng.uniform(0.78, 0.86)
    distance: Field = np.maximum(np.hypot(u, v) - 1, bite - np.hypot(u - shift, v))
    return distance


_DISTANCES: dict[str, Callable[[random.Random, Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "diamond": _diamond,
    "moon": _moon,
}


def _letters(rng: random.Random, text: str, row: int, side: int, fine: float) -> Field:
    """Cover (side, side) of the text, cut out at its ink, turned and pasted into its row."""
    letter = rng.uniform(*world.LETTER_SIZE) * fine
    file = rng.choice(FACES)
    left, top, right, bottom = load_face(file, round(letter)).getbbox(text)
    if right - left > world.TEXT_WIDTH * fine:
        letter *= world.TEXT_WIDTH * fine / (right - left)
    face = load_face(file, int(letter))
    left, top, right, bottom = face.getbbox(text)
    stamp = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(stamp).text((-left, -top), text, fill=255, font=face)
    angle = rng.uniform(-world.MAX_TEXT_ROTATION, world.MAX_TEXT_ROTATION)
    stamp = stamp.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    free = side - stamp.width
    middle = side / 3 * (row + 0.5) + rng.uniform(-3, 3) * fine - stamp.height / 2
    sheet = Image.new("L", (side, side))
    sheet.paste(
        stamp, (round(rng.uniform(0.02, 0.98) * free), round(np.clip(middle, 0, side - stamp.height)))
    )
    return np.asarray(sheet, dtype=np.float64) / 255


def _stored(rng: random.Random, picture: Image.Image) -> Image.Image:
    """The picture as it comes back from a JPEG or PNG file."""
    if rng.random() < 0.5:
        return picture
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(45, 95))
    return Image.open(file).convert("RGB")
