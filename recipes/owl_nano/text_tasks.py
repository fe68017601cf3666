"""Questions without a picture: sums, reversed words, colors of things, small talk."""

from __future__ import annotations

import random

from recipes.owl_nano.questions import Turn, others
from recipes.owl_nano.world import COLOR_NAMES

REVERSIBLE = "cat dog sun owl bus tea hot star moon tree fish bird milk stop open exit park bank book cold"
THINGS = {
    "yellow": "banana lemon sun",
    "red": "tomato strawberry blood cherry",
    "blue": "sky ocean",
    "green": "grass leaf frog cucumber",
    "orange": "carrot pumpkin",
    "pink": "flamingo pig",
    "purple": "grape plum eggplant",
}
SMALL_TALK = {
    "Hello!": ("Hello! How can I help you?", "hello"),
    "Hi.": ("Hello! How can I help you?", "hello"),
    "Good morning.": ("Hello! How can I help you?", "hello"),
    "Thank you.": ("You are welcome.", "welcome"),
    "Who are you?": ("I am owl-nano, a small model that looks at pictures.", "owl nano"),
    "What can you do?": ("I can describe pictures and answer questions about them.", "pictures"),
    "Goodbye.": ("Goodbye! See you soon.", "goodbye"),
}


def ask_sum(rng: random.Random) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    question = rng.choice((f"What is {a} + {b}?", f"Compute {a} + {b}."))
    wrong = tuple(str(n) for n in range(100) if n not in (a, b, a + b))
    return Turn("sums", question, f"{a} + {b} = {a + b}.", (f"{a} {b} {a + b}",), wrong)


def ask_reverse(rng: random.Random) -> Turn:
    word = rng.choice(REVERSIBLE.split())
    return Turn("text", f"Reverse the word {word}.", word[::-1], (word[::-1],))


def ask_thing(rng: random.Random) -> Turn:
    color = rng.choice([c for c, names in THINGS.items() for _ in names.split()])
    thing = rng.choice(THINGS[color].split())
    if thing in ("sun", "sky", "ocean"):
        name = f"the {thing}"
    elif thing in ("blood", "grass"):
        name = rng.choice(("the ", "")) + thing
    else:
        name = rng.choice(("the", "an" if thing[0] in "aeiou" else "a")) + f" {thing}"
    return Turn("text", f"What color is {name}?", f"It is {color}.", (color,), others(color, COLOR_NAMES))


def ask_small_talk(rng: random.Random) -> Turn:
    question = rng.choice(tuple(SMALL_TALK))
    answer, accepted = SMALL_TALK[question]
    return Turn("text", question, answer, (accepted,))


def ask_text(rng: random.Random) -> Turn:
    """Sums in 45 % of the cases: they have the most different questions."""
    makers = (ask_sum, ask_reverse, ask_thing, ask_small_talk)
    return rng.choices(makers, (0.45, 0.2, 0.2, 0.15))[0](rng)
