"""From what a caller passes to what the engine runs: ids and pixels, for both doors (prompts.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from owl_fast.errors import ImageError, PromptError
from owl_fast.fetch import Fetcher
from owl_fast.images import ImageProcessor
from owl_fast.prompts import Message, TextPiece, chat_pieces, check_images, encode, raw_pieces
from owl_fast.tokenizer import Tokenizer

Prompt = str | Sequence[Message]
PromptItem = str | Mapping[str, Any]


@dataclass(frozen=True)
class PreparedPrompt:
    """ids with IMAGE_ID where picture rows stand; pixels (n, 3, S, S), None without pictures; the name of
    the adapter asked for, None when none was named; begun: the ids end inside an answer that is to go on."""

    ids: list[int]
    pixels: Tensor | None
    adapter: str | None = None
    begun: bool = False


@dataclass(frozen=True)
class InputReader:
    """Tokenizes prompts and loads their pictures. PromptError and ImageError for what does not fit."""

    tokenizer: Tokenizer
    processor: ImageProcessor
    image_rows: int
    fetcher: Fetcher

    def read(
        self, prompt: Prompt, images: Sequence[object] | None = None, adapter: str | None = None
    ) -> PreparedPrompt:
        """A raw prompt with its pictures, or messages that carry theirs."""
        if isinstance(prompt, str):
            pieces, pictures = raw_pieces(prompt), list(_as_list(images))
            check_images(pieces, len(pictures))
        else:
            if images:
                raise PromptError(
                    f"{len(images)} picture(s) came beside messages; put them into the messages as parts "
                    '{"type": "image", "image": ...}'
                )
            pieces, pictures = chat_pieces(prompt)
        ids = encode(pieces, self.tokenizer, self.image_rows)
        begun = any(isinstance(piece, TextPiece) and piece.supervised for piece in pieces)
        return PreparedPrompt(ids, self.pixels(pictures), adapter, begun)

    def read_item(self, item: PromptItem, index: int, adapter: str | None = None) -> PreparedPrompt:
        """One entry of a list of requests: a raw prompt, {"prompt", "images"} or {"messages"}, each dict with
        an "adapter" if it wants one of its own."""
        if isinstance(item, str):
            return self.read(item, adapter=adapter)
        if not isinstance(item, Mapping):
            raise PromptError(f"request {index}: a {type(item).__name__} came; wanted a prompt or a dict")
        unknown = item.keys() - {"prompt", "messages", "images", "adapter"}
        if unknown or ("prompt" in item) == ("messages" in item):
            raise PromptError(
                f"request {index}: keys {sorted(map(str, item))}; "
                'wanted {"prompt", "images"} or {"messages"}, and "adapter" if one is meant'
            )
        prompt = item["prompt"] if "prompt" in item else item["messages"]
        own = item.get("adapter")
        try:
            return self.read(prompt, item.get("images"), adapter if own is None else own)
        except (PromptError, ImageError) as error:
            raise type(error)(f"request {index}: {error}") from None

    def pixels(self, pictures: Sequence[object]) -> Tensor | None:
        """float32 (n, 3, S, S), or None for no pictures."""
        return torch.stack([self.processor(self.load(p)) for p in pictures]) if pictures else None

    def load(self, picture: object) -> object:
        """The picture itself where a URL came, anything else as it is."""
        if isinstance(picture, str) and picture.lower().startswith(("http:", "https:")):
            if not self.fetcher.hosts:
                raise ImageError(
                    "a URL came where a picture was wanted, and none is fetched unless its host is named in "
                    'Engine.from_pretrained(..., allow_urls=["HOST"]); or pass the path or the bytes'
                )
            return self.fetcher(picture)
        return picture


def is_messages(prompt: object) -> bool:
    """True for one conversation, False for a list of requests."""
    return (
        isinstance(prompt, Sequence)
        and bool(prompt)
        and isinstance(prompt[0], Mapping)
        and "role" in prompt[0]
    )


def _as_list(images: Sequence[object] | None) -> Sequence[object]:
    if images is None:
        return ()
    if isinstance(images, (list, tuple)):
        return images
    raise PromptError(f"images is a {type(images).__name__}; wanted a list, one entry per picture")
