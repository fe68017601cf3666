"""Pictures on their way into the language model, and the rows of those seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain

from torch import Tensor

from owl_fast.images import PREPROCESSING
from owl_fast.prompts import IMAGE_ID

PICTURE_CACHE_MB = 64  # MiB; a picture of the 7B model takes half a one


@dataclass(eq=False)
class Picture:
    """pixels: (3, S, S), of a video (T, 3, S, S), as the tower takes them. rows: (image_rows, hidden), what
    stands for it in the language model's input, once it is encoded."""

    pixels: Tensor
    rows: Tensor | None = None
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.pixels.contiguous()
        described = f"{PREPROCESSING} {tuple(pixels.shape)} {pixels.dtype}".encode()
        self.digest = sha256(described + pixels.cpu().numpy().tobytes()).digest()

    def units(self, rows: int) -> list[int]:
        """For each of its rows a number below those of all tokens, which tells its content (blocks.py)."""
        digests = (sha256(self.digest + row.to_bytes(4, "little")).digest() for row in range(rows))
        return [-2 - (int.from_bytes(digest[:8], "little") >> 2) for digest in digests]


def units_of(ids: Seq[int], pictures: Seq[Picture]) -> list[int]:
    """A prompt's ids, a picture's own numbers in place of IMAGE_ID."""
    if not pictures:
        return list(ids)
    rows = ids.count(IMAGE_ID) // len(pictures)
    told = chain.from_iterable(picture.units(rows) for picture in pictures)
    return [next(told) if token == IMAGE_ID else token for token in ids]


class PictureCache:
    """Rows of pictures, those used last, in at most `limit` bytes.

    A key says what the picture holds and who encoded it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def put(self, key: bytes, rows: Tensor) -> None:
        """key: not among those held."""
        self._rows[key] = rows
        self.nbytes += rows.nbytes
        while self.nbytes > self.limit:
            _, dropped = self._rows.popitem(last=False)
            self.nbytes -= dropped.nbytes
