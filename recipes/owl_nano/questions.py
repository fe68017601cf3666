"""Questions about one scene (or two): text, right answer, and the words that make an answer right or wrong.

Every maker takes (rng, scene) and returns a Turn, or None where the scene does not allow the question
(the color of "the star" needs exactly one star). The phrases are those of the world description.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from recipes.owl_nano.world import (
    COLOR_NAMES,
    NUMBER_WORDS,
    PLURALS,
    SHAPES,
    WORDS,
    Scene,
    Shape,
    article,
    caption,
)

POSITION_WORDS = ("top", "bottom", "left", "right", "center")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    accepted: any of these phrases makes an answer right; rejected: none may occur; required: all must.
    """

    task: str
    question: str
    answer: str
    accepted: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


Maker = Callable[[random.Random, Scene], Turn | None]


def others(word: str, all_words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(w for w in all_words if w != word)


def _unique(scene: Scene, key: Callable[[Shape], str]) -> list[Shape]:
    keys = [key(s) for s in scene.shapes]
    return [s for s, k in zip(scene.shapes, keys, strict=True) if keys.count(k) == 1]


def unique_shapes(scene: Scene) -> list[Shape]:
    return _unique(scene, lambda s: s.shape)


def unique_colors(scene: Scene) -> list[Shape]:
    return _unique(scene, lambda s: s.color)


def color_of(shape: Shape, question: str, task: str = "color") -> Turn:
    answer = f"The {shape.shape} is {shape.color}."
    return Turn(task, question, answer, (shape.color,), others(shape.color, COLOR_NAMES))


def place_of(shape: Shape, question: str, task: str = "where") -> Turn:
    name = shape.position
    wrong = tuple(w for w in POSITION_WORDS if w not in name.split())
    return Turn(task, question, f"The {shape.shape} is at the {name}.", (name,), wrong)


def ask_color(rng: random.Random, scene: Scene) -> Turn | None:
    known = unique_shapes(scene)
    if not known:
        return None
    target = rng.choice(known)
    forms = ("What color is the {}?", "What is the color of the {}?", "Which color does the {} have?")
    return color_of(target, rng.choice(forms).format(target.shape))


def ask_where(rng: random.Random, scene: Scene) -> Turn | None:
    known = unique_shapes(scene)
    if not known:
        return None
    target = rng.choice(known)
    return place_of(
        target, rng.choice(("Where is the {}?", "Where can you see the {}?")).format(target.shape)
    )


def ask_shape(rng: random.Random, scene: Scene) -> Turn | None:
    known = unique_colors(scene)
    if not known:
        return None
    target = rng.choice(known)
    forms = ("What shape is {}?", "Which shape is {}?", "What is the {} object?")
    answer = f"The {target.color} shape is {article(target.shape)} {target.shape}."
    question = rng.choice(forms).format(target.color)
    return Turn("shape", question, answer, (target.shape,), others(target.shape, SHAPES))


def _number(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = [(word, str(n)) for n, word in enumerate(NUMBER_WORDS)]
    wrong = [form for n, forms in enumerate(names) if n != count for form in forms]
    return names[count], tuple(wrong)


def ask_count(rng: random.Random, scene: Scene) -> Turn:
    count = len(scene.shapes)
    forms = ("How many shapes are there?", "How many objects are in the picture?", "Count the shapes.")
    answer = "There is one shape." if count == 1 else f"There are {NUMBER_WORDS[count]} shapes."
    return Turn("count", rng.choice(forms), answer, *_number(count))


def count_sentence(count: int, shape: str) -> str:
    return f"There is one {shape}." if count == 1 else f"There are {NUMBER_WORDS[count]} {PLURALS[shape]}."


def ask_countof(rng: random.Random, scene: Scene) -> Turn:
    """The count asked for is 0 in a quarter of the cases, else that of a shape in the picture (the most
    frequent one half of the time, so that two and three are not rare)."""
    present = [s.shape for s in scene.shapes]
    absent = [name for name in SHAPES if name not in present]
    if not present or rng.random() < 0.25:
        shape = rng.choice(absent)
    elif rng.random() < 0.5:
        shape = max(present, key=present.count)
    else:
        shape = rng.choice(present)
    count = present.count(shape)
    question = rng.choice(("How many {} are there?", "How many {} do you see?")).format(PLURALS[shape])
    return Turn("countof", question, count_sentence(count, shape), *_number(count))


def yes_no(task: str, question: str, truth: bool) -> Turn:
    right, wrong = ("yes", "no") if truth else ("no", "yes")
    return Turn(task, question, right.capitalize() + ".", (right,), (wrong,))


def absent_pair(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """A (color, shape) that is not in the picture; mostly one made of a color and a shape that are."""
    present = {(s.color, s.shape) for s in scene.shapes}
    swaps = [
        (a.color, b.shape) for a in scene.shapes for b in scene.shapes if (a.color, b.shape) not in present
    ]
    if swaps and rng.random() < 0.6:
        return rng.choice(swaps)
    while True:
        color, shape = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
        if scene.shapes and rng.random() < 0.7:
            near = rng.choice(scene.shapes)
            color, shape = (near.color, shape) if rng.random() < 0.5 else (color, near.shape)
        if (color, shape) not in present:
            return color, shape


def something(rng: random.Random, scene: Scene) -> tuple[str, bool] | None:
    """A shape with or without a color, and whether it is in the picture: in half of the cases."""
    truth = bool(scene.shapes) and rng.random() < 0.5
    if rng.random() < 0.6:
        pair = rng.choice([(s.color, s.shape) for s in scene.shapes]) if truth else absent_pair(rng, scene)
        return " ".join(pair), truth
    present = {s.shape for s in scene.shapes}
    names = [name for name in SHAPES if (name in present) == truth]
    return (rng.choice(names), truth) if names else None


def ask_exist(rng: random.Random, scene: Scene) -> Turn | None:
    found = something(rng, scene)
    if found is None:
        return None
    thing, truth = found
    question = rng.choice(("Is there {} {}?", "Do you see {} {}?")).format(article(thing), thing)
    return yes_no("exist", question, truth)


def ask_read(rng: random.Random, scene: Scene) -> Turn:
    question = rng.choice(("What does the text say?", "Read the text.", "What is written in the picture?"))
    if scene.text is None:
        return Turn("read", question, "There is no text.", ("no text",))
    word = scene.text.lower()
    if word.isdigit():
        wrong = tuple(str(n) for n in range(100) if str(n) != word)
    else:
        wrong = tuple(w.lower() for w in WORDS if w.lower() != word)
    return Turn("read", question, f"The text says {scene.text}.", (word,), wrong)


def ask_describe(rng: random.Random, scene: Scene) -> Turn:
    question = rng.choice(("Describe the picture.", "What is in the picture?", "What do you see?"))
    needed = [f"{s.color} {s.shape}" for s in scene.shapes]
    if scene.text is not None:
        needed.append(scene.text.lower())
    return Turn("describe", question, caption(scene), (), (), tuple(dict.fromkeys(needed)))


def follow_up(rng: random.Random, scene: Scene) -> tuple[Turn, Turn] | None:
    """A first question about one shape and a second that says only "it"."""
    known = unique_shapes(scene)
    if not known:
        return None
    target = rng.choice(known)
    name = target.shape
    to_color, to_place = color_of(target, "", "multi"), place_of(target, "", "multi")
    openers: list[tuple[Turn, str]] = [
        (color_of(target, f"What color is the {name}?"), "where"),
        (place_of(target, f"Where is the {name}?"), "color"),
        (place_of(target, f"Where can you see the {name}?"), "color"),
        (yes_no("exist", f"Is there {article(name)} {name}?", True), rng.choice(("where", "color"))),
    ]
    if target in unique_colors(scene):
        answer = f"The {target.color} shape is {article(name)} {name}."
        question = rng.choice(("What shape is {}?", "Which shape is {}?", "What is the {} object?"))
        wrong = others(name, SHAPES)
        opener = Turn("shape", question.format(target.color), answer, (name,), wrong)
        openers.append((opener, rng.choice(("where", "where", "color"))))
    first, ask = rng.choice(openers)
    if ask == "color":
        second, forms = to_color, ("And its color?", "What color is it?")
    else:
        second, forms = to_place, ("And where is it?", "Where is it?")
    return first, Turn("multi", rng.choice(forms), second.answer, second.accepted, second.rejected)


def compare(rng: random.Random, first: Scene, second: Scene) -> Turn:
    """A question about two pictures. Few pairs share a shape, so those that do are mostly asked for it."""
    a, b = {s.shape for s in first.shapes}, {s.shape for s in second.shapes}
    weights = {"both": 2.0 if a & b else 0.4}
    if len(first.shapes) != len(second.shapes):
        weights["more"] = 1.0
    if a ^ b:
        weights["which"] = 1.0
    kind = rng.choices(tuple(weights), tuple(weights.values()))[0]
    if kind == "more":
        return _which("Which picture has more shapes?", len(first.shapes) > len(second.shapes))
    if kind == "which":
        side = [s for s in (sorted(a - b), sorted(b - a)) if s]
        shape = rng.choice(rng.choice(side))
        return _which(f"Which picture has {article(shape)} {shape}?", shape in a)
    shared, single = sorted(a & b), sorted(a ^ b)
    truth = bool(shared) and rng.random() < 0.75
    pool = shared if truth else (single if single and rng.random() < 0.8 else _absent(a & b))
    shape = rng.choice(pool)
    return yes_no("compare", f"Do both pictures have {article(shape)} {shape}?", truth)


def _absent(shapes: set[str]) -> list[str]:
    return [name for name in SHAPES if name not in shapes]


def _which(question: str, is_first: bool) -> Turn:
    right, wrong = ("first", "second") if is_first else ("second", "first")
    return Turn("compare", question, f"The {right} picture.", (right,), (wrong,))


ABOUT_ONE_PICTURE: dict[str, Maker] = {
    "color": ask_color,
    "shape": ask_shape,
    "count": ask_count,
    "countof": ask_countof,
    "where": ask_where,
    "exist": ask_exist,
    "read": ask_read,
    "describe": ask_describe,
}
