"""Pictures to look at: contact sheets of what a drawing program makes, and the pictures in examples/.

python -m recipes.owl_nano.gallery sheet.png --program draw_blind --count 40 --seed 1
python -m recipes.owl_nano.gallery examples --examples
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw

from recipes.owl_nano import draw, draw_blind
from recipes.owl_nano.world import Scene, Shape, caption, sample_scene

PROGRAMS = {"draw": draw.draw, "draw_blind": draw_blind.draw}
EXAMPLES = {
    "scene.png": Scene((Shape("red", "star", 0, 0), Shape("blue", "circle", 1, 2)), "OWL", 2),
    "two.png": Scene(
        (Shape("green", "square", 0, 1), Shape("yellow", "heart", 1, 0), Shape("purple", "moon", 2, 2))
    ),
    "sign.png": Scene((Shape("orange", "diamond", 2, 1),), "42", 0),
}
COLUMNS, CELL, LINES = 8, 224, 3


def sheet(program: str, count: int, seed: int) -> Image.Image:
    """`count` random scenes of all source sizes, each enlarged to 224 px over its caption."""
    rng = random.Random(seed)
    page = Image.new("RGB", (COLUMNS * CELL, -(-count // COLUMNS) * (CELL + 12 * LINES)), "white")
    pen = ImageDraw.Draw(page)
    for index in range(count):
        scene = sample_scene(rng)
        picture = PROGRAMS[program](scene, rng, rng.choice(draw.SOURCE_SIZES))
        x, y = index % COLUMNS * CELL, index // COLUMNS * (CELL + 12 * LINES)
        page.paste(picture.resize((CELL - 4, CELL - 4)), (x, y))
        pen.text((x, y + CELL - 4), "\n".join(wrap(caption(scene), 38)[:LINES]), fill="black")
    return page


def write_examples(folder: Path) -> None:
    """The example pictures: calm ones, in one style."""
    calm = {"light": True, "gradient": "linear", "face": "sans-bold", "slant": 0.0, "supersample": 4}
    plain = {"noise": 0.0, "blur": 0.0, "jpeg_quality": None, "outline_share": 0.0}
    for seed, (name, scene) in enumerate(EXAMPLES.items()):
        draw.draw(scene, random.Random(seed), 224, **calm, **plain).save(folder / name, optimize=True)


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet or the example pictures of owl-nano.")
    parser.add_argument("output", type=Path, help="the sheet's file, or the folder for --examples")
    parser.add_argument("--examples", action="store_true")
    parser.add_argument("--program", choices=PROGRAMS, default="draw")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.examples:
        write_examples(options.output)
    else:
        sheet(options.program, options.count, options.seed).save(options.output)


if __name__ == "__main__":
    main()
