"""Color questions in German, French, Chinese and Japanese."""

from __future__ import annotations

import random

from recipes.owl_nano.questions import Turn, unique_shapes
from recipes.owl_nano.world import COLOR_NAMES, SHAPES, Scene

# Each list follows the order of COLOR_NAMES and SHAPES.
_COLORS = {
    "de": "Rot Orange Gelb Grün Türkis Blau Lila Rosa",
    "fr": "Rouge Orange Jaune Vert Cyan Bleu Violet Rose",
    "zh": "红色 橙色 黄色 绿色 青色 蓝色 紫色 粉色",
    "ja": "赤 オレンジ 黄色 緑 水色 青 紫 ピンク",
}
_SHAPES = {
    "de": "der Kreis,das Quadrat,das Dreieck,der Stern,das Herz,das Kreuz,die Raute,der Mond",
    "fr": "le cercle,le carré,le triangle,l'étoile,le cœur,la croix,le losange,la lune",
    "zh": "圆形,正方形,三角形,星星,心形,十字,菱形,月亮",
    "ja": "円,四角,三角,星,ハート,十字,ひし形,月",
}
_QUESTIONS = {
    "de": "Welche Farbe hat {}?",
    "fr": "De quelle couleur est {} ?",
    "zh": "{}是什么颜色?",
    "ja": "{}は何色ですか?",
}
_ANSWERS = {"de": "{}.", "fr": "{}.", "zh": "{}。", "ja": "{}です。"}

COLORS_IN = {code: tuple(text.split()) for code, text in _COLORS.items()}
SHAPES_IN = {code: tuple(text.split(",")) for code, text in _SHAPES.items()}


def ask_color_in(code: str, rng: random.Random, scene: Scene) -> Turn | None:
    """code: de, fr, zh or ja. None where no shape is unique."""
    known = unique_shapes(scene)
    if not known:
        return None
    target = rng.choice(known)
    color = COLORS_IN[code][COLOR_NAMES.index(target.color)]
    question = _QUESTIONS[code].format(SHAPES_IN[code][SHAPES.index(target.shape)])
    wrong = tuple(c.lower() for c in COLORS_IN[code] if c != color)
    return Turn("languages", question, _ANSWERS[code].format(color), (color.lower(),), wrong)


def ask_color_abroad(rng: random.Random, scene: Scene) -> Turn | None:
    return ask_color_in(rng.choice(tuple(COLORS_IN)), rng, scene)
