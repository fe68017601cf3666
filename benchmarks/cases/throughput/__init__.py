"""throughput: tokens/s of many requests at once, prompts included, from the call to the last answer.

texts      prompts of equal length, each with tokens of its own, beside others; the limit is what all prompts
           and then every step must compute and read
pictures   a picture and a question each: all pictures different, or the same one; with the caches and without
guesses    owl-nano's own weights on held-out dialogues, answers guessed on (speculation) or not; not with the
           sizes of 7b-random, whose weights are random

--only TEXT: the parts with TEXT in their name.
"""

from __future__ import annotations

import argparse

from benchmarks.cases.throughput import guesses, pictures, texts
from benchmarks.harness import Row
from owl_fast.errors import OwlError

PARTS = {"texts": texts.run, "pictures": pictures.run, "guesses": guesses.run}


def run(args: argparse.Namespace) -> list[Row]:
    if not any(args.only in name for name in PARTS):
        raise OwlError(f"--only {args.only}: no such part; there are {', '.join(PARTS)}")
    return [row for name, part in PARTS.items() if args.only in name for row in part(args)]
