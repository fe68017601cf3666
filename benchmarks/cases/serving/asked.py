"""What is asked of a server: texts, and questions about pictures. No two prompts begin alike."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.vocabulary import text_of

TEXT, SHARED, DIFFERENT = KINDS = "text", "one picture", "different pictures"
SIDES = 640, 480  # of a picture, sent as a JPEG file
GRAIN = 20  # pixels of a picture that were one


class Size(NamedTuple):
    """Tokens of a text and of an answer; seconds in which requests are sent, and of a client's patience.
    most: requests a second that the clients of a closed loop are prepared for. shares: of the capacity, which
    are offered; then up to `more` loads beyond them, while ours keeps up."""

    prompt: int
    answer: int
    seconds: float
    patience: float
    most: float
    shares: tuple[float, ...] = (0.2, 0.5, 0.8, 1.0, 1.3)
    more: int = 3


class Asker:
    """Makes requests, each index of them once."""

    def __init__(self, words: list[str], size: Size) -> None:
        self._words, self._size, self._count = words, size, 0

    def bodies(self, kind: str, count: int, model: str, extras: Mapping[str, Any]) -> list[str]:
        """The next ones as JSON texts. A shared picture is a new one in every call."""
        size = self._size
        given = {
            "model": model,
            "max_tokens": size.answer,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            **extras,
        }
        asked = []
        shared = _picture(self._count)
        for index in range(self._count, self._count + count):
            text = text_of(size.prompt, self._words, index)
            if kind == TEXT:
                asked.append(given | {"prompt": text})
            else:
                picture = shared if kind == SHARED else _picture(index)
                content = [
                    {"type": "image_url", "image_url": {"url": picture}},
                    {"type": "text", "text": text},
                ]
                asked.append(given | {"messages": [{"role": "user", "content": content}]})
        self._count += count
        return [json.dumps(body) for body in asked]


def path_of(kind: str) -> str:
    return "/v1/completions" if kind == TEXT else "/v1/chat/completions"


def arrivals(count: int, seconds: float, seed: int) -> list[float]:
    """A Poisson process in which so many came: that is what uniform moments are, put in order."""
    moments = random.Random(seed)
    return sorted(moments.uniform(0, seconds) for _ in range(count))


def _picture(seed: int) -> str:
    """Patches of colour that run into each other, as a data URI."""
    small = SIDES[0] // GRAIN, SIDES[1] // GRAIN
    pixels = random.Random(seed).randbytes(3 * small[0] * small[1])
    buffer = io.BytesIO()
    Image.frombytes("RGB", small, pixels).resize(SIDES, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
