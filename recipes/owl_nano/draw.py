"""The training pictures: polygons and letters painted with Pillow on a noisy near-grey ground.

Every picture is made in a style of its own (typeface, smoothing, noise, JPEG, light), so that a model learns
the world and not one renderer. Needs the `recipe` extra: the DejaVu faces come with matplotlib. Lengths are
pixels of a 112 x 112 picture until `_Canvas` scales them; y points down.
"""

from __future__ import annotations

import colorsys
import io
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, cos, floor, pi, radians, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from recipes.owl_nano import world
from recipes.owl_nano.outlines import OUTLINES, Point
from recipes.owl_nano.typefaces import load_face
from recipes.owl_nano.world import Scene, Shape

Polygon = tuple[Point, ...]
Floats = NDArray[np.float32]

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SOURCE_SIZES = (112, 160, 224)
# file, horizontal squeeze: 0.9 makes Sans Bold look like Sans Condensed Bold, which matplotlib does not carry
FACES: dict[str, tuple[str, float]] = {
    "sans": ("DejaVuSans.ttf", 1.0),
    "sans-bold": ("DejaVuSans-Bold.ttf", 1.0),
    "sans-condensed-bold": ("DejaVuSans-Bold.ttf", 0.9),
    "serif-bold": ("DejaVuSerif-Bold.ttf", 1.0),
    "sans-mono-bold": ("DejaVuSansMono-Bold.ttf", 1.0),
}


@dataclass(frozen=True)
class Style:
    """How a picture is rendered; lengths in pixels of the finished picture."""

    light: bool  # background: light or dark
    gradient: str  # "flat", "linear" or "round"
    face: str  # key of FACES
    slant: float  # of the letters: 0 upright, 0.2 clearly oblique
    supersample: int  # 1 = no anti-aliasing
    noise: float  # sigma, levels
    grey_noise: bool  # one noise for all three channels
    blur: float  # radius; 0 = none
    jpeg_quality: int | None
    outline_share: float


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels of a 112 x 112 picture whatever size was drawn.

    `outlines` follows `scene.shapes`; `letter_boxes` follows the characters of `scene.text`.
    """

    outlines: tuple[Polygon, ...]
    letter_boxes: tuple[Polygon, ...]


def sample_style(rng: random.Random) -> Style:
    """A random style with the shares the training pictures use."""
    return Style(
        light=rng.random() < 0.6,
        gradient=rng.choice(("flat", "linear", "round")),
        face=rng.choice(tuple(FACES)),
        slant=rng.uniform(0.05, 0.25) if rng.random() < 0.2 else 0.0,
        supersample=rng.choices((1, 2, 3, 4), (15, 30, 25, 30))[0],
        noise=rng.uniform(*world.NOISE_SIGMA),
        grey_noise=rng.random() < 0.3,
        blur=rng.uniform(0.3, 0.8) if rng.random() < 0.12 else 0.0,
        jpeg_quality=rng.randint(45, 95) if rng.random() < 0.3 else None,
        outline_share=world.OUTLINE_SHARE,
    )


def sample_size(rng: random.Random) -> int:
    """A random source size, mostly the model's own 112 px, which is also the cheapest."""
    return rng.choices(SOURCE_SIZES, (80, 10, 10))[0]


def draw(scene: Scene, rng: random.Random, size: int = world.PICTURE_SIZE, **fixed: Any) -> Image.Image:
    """Draw `scene` as a square RGB picture; see `draw_with_layout`."""
    return draw_with_layout(scene, rng, size, **fixed)[0]


def draw_with_layout(
    scene: Scene, rng: random.Random, size: int = world.PICTURE_SIZE, **fixed: Any
) -> tuple[Image.Image, Layout]:
    """Draw `scene` and tell where things are.

    Args:
        scene: what to draw.
        rng: the only source of chance; the same state gives the same picture.
        size: side of the picture in pixels.
        fixed: fields of `Style` that are not left to chance, e.g. `noise=0.0, jpeg_quality=None`.
    Raises:
        FileNotFoundError: the DejaVu faces are not installed and the scene holds a text.
        TypeError: `fixed` names no field of `Style`.
    """
    style = replace(sample_style(rng), **fixed)
    canvas = _Canvas(rng, style, size)
    single = len(scene.shapes) == 1 and scene.text is None
    outlines = [_place(rng, shape, single) for shape in scene.shapes]
    for shape, outline in zip(scene.shapes, outlines, strict=True):
        canvas.paint_shape(outline, _sample_color(rng, shape.color))
    letter_boxes: tuple[Polygon, ...] = ()
    if scene.text is not None and scene.text_row is not None:
        letter_boxes = canvas.paint_text(scene.text, scene.text_row)
    return canvas.finish(), Layout(tuple(outlines), letter_boxes)


def patch_labels(scene: Scene, layout: Layout, grid: int = 8, threshold: float = 0.12) -> NDArray[np.int64]:
    """What lies under each patch of a 112 x 112 picture.

    Args:
        scene, layout: as given to and returned by `draw_with_layout`.
        grid: patches per side; must divide 112.
        threshold: least share of the patch's area a thing must cover to be named.
    Returns:
        (3, grid, grid): shape class, color class, character class; 0 = none, else 1 + the index in
        `world.SHAPES`, `world.COLOR_NAMES`, `CHARACTERS`. Of several things the one covering most counts.
    """
    size = world.PICTURE_SIZE
    picture = Image.new("L", (size, size))  # 0 = ground, then one number per thing
    pen = ImageDraw.Draw(picture)
    things = layout.outlines + layout.letter_boxes
    for number, polygon in enumerate(things, start=1):
        pen.polygon([(x - 0.5, y - 0.5) for x, y in polygon], fill=number)
    patch = size // grid
    ids = np.asarray(picture).reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    cover = (ids[:, :, None] == np.arange(1, len(things) + 1)).mean(1)  # (patches, things)
    labels = np.zeros((3, grid * grid), dtype=np.int64)
    shapes = len(scene.shapes)
    names = (
        [1 + world.SHAPES.index(shape.shape) for shape in scene.shapes],
        [1 + world.COLOR_NAMES.index(shape.color) for shape in scene.shapes],
        [1 + CHARACTERS.index(character) for character in scene.text or ""],
    )
    for row, part in enumerate((cover[:, :shapes], cover[:, :shapes], cover[:, shapes:])):
        if part.shape[1]:
            labels[row] = np.where(part.max(1) >= threshold, np.array(names[row])[part.argmax(1)], 0)
    return labels.reshape(3, grid, grid)


def _place(rng: random.Random, shape: Shape, single: bool) -> Polygon:
    """The shape's outline in its cell."""
    size, jitter = world.PICTURE_SIZE, world.CENTER_JITTER
    radius = rng.uniform(*(world.SINGLE_RADIUS if single else world.RADIUS))
    center = [size / 3 * (cell + 0.5) + rng.uniform(-jitter, jitter) for cell in (shape.col, shape.row)]
    cx, cy = (min(max(c, radius + 1), size - 1 - radius) for c in center)
    angle = radians(rng.uniform(-world.MAX_ROTATION, world.MAX_ROTATION))
    c, s = radius * cos(angle), radius * sin(angle)
    return tuple((cx + c * x - s * y, cy + s * x + c * y) for x, y in OUTLINES[shape.shape](rng))


def _sample_color(rng: random.Random, name: str) -> Floats:
    """A shade of the named color, (3,) in 0..255."""
    hue, saturation, value = (rng.uniform(*span) for span in world.COLORS[name])
    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value), dtype=np.float32) * 255


@dataclass(frozen=True)
class _Line:
    """A written line on a mask, in fine pixels: the middle of its letters, where letters begin and end."""

    mask: Image.Image
    middle: Point
    stops: tuple[float, ...]
    cap: int  # height of a capital
    squeeze: float
    slant: float

    @property
    def width(self) -> float:
        return self.stops[-1] * self.squeeze + self.cap * self.slant

    def turn(self, angle: float) -> NDArray[np.float64]:
        """(2, 2) from the line to the picture, both y down: squeeze, slant, then turn left by `angle`."""
        c, s = cos(angle), sin(angle)
        squeeze, slant = self.squeeze, self.slant
        return np.array([[c * squeeze, s - c * slant], [-s * squeeze, c + s * slant]])

    def boxes(self) -> NDArray[np.float64]:
        """(letters, 4, 2): corners of each letter's box around the middle of the line."""
        x = np.array(self.stops) - self.stops[-1] / 2
        left, right, high = x[:-1], x[1:], np.full(len(x) - 1, self.cap / 2)
        corners = ((left, -high), (right, -high), (right, high), (left, high))
        return np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)


class _Canvas:
    """A picture in the making: float levels (size, size, 3), one style, one source of chance."""

    def __init__(self, rng: random.Random, style: Style, size: int) -> None:
        self.rng, self.style, self.size = rng, style, size
        self.scale = size / world.PICTURE_SIZE
        level = rng.uniform(*(world.LIGHT_BACKGROUND if style.light else world.DARK_BACKGROUND))
        tint = world.BACKGROUND_TINT
        base = np.array([level + rng.uniform(-tint, tint) for _ in range(3)], dtype=np.float32)
        self.pixels = np.empty((size, size, 3), dtype=np.float32)
        self.pixels[:] = base if style.gradient == "flat" else base + self._gradient()[:, :, None]

    def _gradient(self) -> Floats:
        """(size, size) levels spanning at most the world's 40 around 0."""
        span = self.rng.uniform(-world.GRADIENT_LEVELS, world.GRADIENT_LEVELS)
        axis = np.linspace(-0.5, 0.5, self.size, dtype=np.float32)
        if self.style.gradient == "linear":
            angle = self.rng.uniform(0, 2 * pi)
            reach = abs(cos(angle)) + abs(sin(angle))
            plane: Floats = np.float32(span / reach * cos(angle)) * axis
            return plane + np.float32(span / reach * sin(angle)) * axis[:, None]
        x, y = self.rng.uniform(-0.4, 0.4), self.rng.uniform(-0.4, 0.4)
        distance: Floats = np.hypot(axis - np.float32(x), axis[:, None] - np.float32(y))
        return (distance - np.float32(0.5)) * np.float32(span / 1.3)

    def paint_shape(self, outline: Polygon, color: Floats) -> None:
        """Fill the outline, its light varying a little across, sometimes with a thin line around it."""
        rng, ss = self.rng, self.style.supersample
        points = [(x * self.scale, y * self.scale) for x, y in outline]
        x0, y0 = (max(0, floor(min(axis)) - 3) for axis in zip(*points, strict=True))
        x1, y1 = (min(self.size, ceil(max(axis)) + 3) for axis in zip(*points, strict=True))
        fine = [((x - x0) * ss - 0.5, (y - y0) * ss - 0.5) for x, y in points]
        mask = Image.new("L", ((x1 - x0) * ss, (y1 - y0) * ss))
        ImageDraw.Draw(mask).polygon(fine, fill=255)
        angle, change = rng.uniform(0, 2 * pi), rng.uniform(0, world.FILL_VARIATION)
        across = change * cos(angle) * np.linspace(-1, 1, x1 - x0, dtype=np.float32)
        down = change * sin(angle) * np.linspace(-1, 1, y1 - y0, dtype=np.float32)
        self._blend(mask, x0, y0, color * (1 + (across + down[:, None])[:, :, None]))
        if rng.random() < self.style.outline_share:
            line = Image.new("L", mask.size)
            width = max(1, round(rng.uniform(0.9, 1.7) * self.scale * ss))
            ImageDraw.Draw(line).line(fine + fine[:2], fill=255, width=width, joint="curve")
            self._blend(line, x0, y0, self._ink())

    def paint_text(self, text: str, row: int) -> tuple[Polygon, ...]:
        """Write `text` into a row of the grid; returns the letters' boxes, as `Layout` keeps them."""
        rng, ss, size = self.rng, self.style.supersample, world.PICTURE_SIZE
        fine = self.scale * ss  # pixels of the fine mask per pixel of the 112 x 112 picture
        line = self._set_line(text, fine)
        half, cap = line.width / 2 / fine, line.cap / fine
        angle = radians(rng.uniform(-world.MAX_TEXT_ROTATION, world.MAX_TEXT_ROTATION))
        high = cap / 2 + half * abs(sin(angle)) + 1
        cx = rng.uniform(min(half + 2, size / 2), max(size - half - 2, size / 2))
        cy = size / 3 * (row + 0.5) + rng.uniform(-world.CENTER_JITTER, world.CENTER_JITTER)
        cy = min(max(cy, high), size - high)
        x0, x1 = (self._pixel(cx + side * (half + 3)) for side in (-1, 1))
        y0, y1 = (self._pixel(cy + side * (high + 3)) for side in (-1, 1))
        turn = line.turn(angle)
        middle = np.array([cx * fine - x0 * ss, cy * fine - y0 * ss])
        back = np.linalg.inv(turn)
        affine = np.column_stack([back, np.array(line.middle) - back @ middle]).ravel()
        smooth = Image.Resampling.NEAREST if ss == 1 else Image.Resampling.BILINEAR
        box = ((x1 - x0) * ss, (y1 - y0) * ss)
        mask = line.mask.transform(box, Image.Transform.AFFINE, affine.tolist(), smooth)
        self._blend(mask, x0, y0, self._ink())
        corners = (line.boxes() @ turn.T / fine + (cx, cy)).tolist()
        return tuple(tuple((x, y) for x, y in quad) for quad in corners)

    def _set_line(self, text: str, fine: float) -> _Line:
        """The text upright on a mask of its own, `fine` pixels per pixel of the 112 x 112 picture."""
        file, squeeze = FACES[self.style.face]
        slant = self.style.slant
        natural = load_face(file, 64).getlength(text) / 64 * squeeze + 0.75 * slant  # width per letter size
        letter = min(self.rng.uniform(*world.LETTER_SIZE), world.TEXT_WIDTH / natural)
        font = load_face(file, round(letter * fine))
        stops = tuple(font.getlength(text[:count]) for count in range(len(text) + 1))
        cap = round(-font.getbbox("H", anchor="ls")[1])
        pad = cap // 3 + 2
        mask = Image.new("L", (ceil(stops[-1]) + 2 * pad, cap + 2 * pad))
        pen = ImageDraw.Draw(mask)
        pen.fontmode = "1" if self.style.supersample == 1 else "L"
        pen.text((pad, pad + cap), text, font=font, fill=255, anchor="ls")
        return _Line(mask, (pad + stops[-1] / 2, pad + cap / 2), stops, cap, squeeze, slant)

    def _pixel(self, length: float) -> int:
        """The pixel of the picture at a length in the 112 x 112 picture."""
        return min(max(floor(length * self.scale), 0), self.size)

    def finish(self) -> Image.Image:
        """Noise, blur and JPEG, as the style says."""
        style, channels = self.style, 1 if self.style.grey_noise else 3
        if style.noise > 0:
            pool, count = _noise_pool(), self.size * self.size * channels
            start = self.rng.randrange(len(pool) - count)
            self.pixels += style.noise * pool[start : start + count].reshape(self.size, self.size, channels)
        levels = np.clip(self.pixels + 0.5, 0, 255, out=self.pixels).astype(np.uint8)
        picture = Image.fromarray(levels)
        if style.blur > 0:
            picture = picture.filter(ImageFilter.GaussianBlur(style.blur))
        if style.jpeg_quality is not None:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=style.jpeg_quality, subsampling=self.rng.choice((0, 2)))
            picture = Image.open(file)
            picture.load()
        return picture

    def _ink(self) -> Floats:
        """Near black on light ground, near white on dark, (3,)."""
        level = self.rng.uniform(*world.TEXT_COLORS["light" if self.style.light else "dark"])
        return np.array([level + self.rng.uniform(-6, 6) for _ in range(3)], dtype=np.float32)

    def _blend(self, mask: Image.Image, x0: int, y0: int, paint: Floats) -> None:
        """Lay `paint` over the picture from (x0, y0) where the fine mask is set."""
        if self.style.supersample > 1:
            mask = mask.reduce(self.style.supersample)
        region = self.pixels[y0 : y0 + mask.height, x0 : x0 + mask.width]
        region += np.asarray(mask, dtype=np.float32)[:, :, None] * np.float32(1 / 255) * (paint - region)


@lru_cache(maxsize=1)
def _noise_pool() -> Floats:
    """A long row of normal numbers to cut noise from: drawing fresh ones would cost more than the picture."""
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
