"""Guesses of how an answer goes on, without a second model.

If the last few ids have come before, in the prompt or in the answer, what followed them then is guessed to
follow again (prompt lookup decoding). The model computes the guessed positions beside the one that is due,
and a guess stays as long as it is what would have been drawn: a draw is a pure function of seed and position,
so the answer is the same with and without guesses, sampled or not.
"""

from __future__ import annotations

from collections.abc import Iterable

from owl_fast.prompts import IMAGE_ID

LENGTHS = (4, 3, 2)  # of what must have come before, the longest first


class Guesser:
    """Remembers where every few ids of a sequence occurred last."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        for token in ids:
            place = len(self._ids)
            for length in LENGTHS:
                if length <= place:
                    self._after[tuple(self._ids[-length:])] = place
            self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to so many ids that may come next; none when nothing like the end came before."""
        for length in LENGTHS:
            place = self._after.get(tuple(self._ids[-length:]))
            if place is not None:
                found = self._ids[place : place + most]
                return found[: found.index(IMAGE_ID)] if IMAGE_ID in found else found
        return []
