"""A contact sheet of pictures with their captions, to look at what a drawing program makes.

python -m recipes.owl_nano.gallery sheet.png --program draw_blind --count 40 --seed 1
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw

from recipes.owl_nano import draw, draw_blind
from recipes.owl_nano.world import caption, sample_scene

PROGRAMS = {"draw": draw.draw, "draw_blind": draw_blind.draw}
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


def main() -> None:
    """Write the sheet the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet of owl-nano pictures.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--program", choices=PROGRAMS, default="draw")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sheet(options.program, options.count, options.seed).save(options.output)


if __name__ == "__main__":
    main()
