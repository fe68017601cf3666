"""From what a caller passes to what the engine runs: ids and pixels, for both doors (prompts.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from owl_fast.errors import PromptError, UnsupportedError
from owl_fast.images import ImageProcessor
from owl_fast.prompts import Message, TextPiece, chat_pieces, check_images, encode, raw_pieces
from owl_fast.tokenizer import Tokenizer

Prompt = str | Sequence[Message]
PromptItem = str | Mapping[str, Any]


@dataclass(frozen=True)
class PreparedPrompt:
    """ids with IMAGE_ID where picture rows stand; pixels (n, 3, S, S), None without pictures; begun: the ids
    end inside an answer that is to go on."""

    ids: list[int]
    pixels: Tensor | None
    begun: bool = False


@dataclass(frozen=True)
class InputReader:
    """Tokenizes prompts and loads their pictures. PromptError and ImageError for what does not fit."""

    tokenizer: Tokenizer
    processor: ImageProcessor
    image_rows: int

    def read(self, prompt: Prompt, images: Sequence[object] | None = None) -> PreparedPrompt:
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
        begun = any(isinstance(piece, TextPiece) and piece.supervised for piece in pieces)
        return PreparedPrompt(encode(pieces, self.tokenizer, self.image_rows), self.pixels(pictures), begun)

    def read_item(self, item: PromptItem, index: int) -> PreparedPrompt:
        """One entry of a list of requests: a raw prompt, {"prompt", "images"} or {"messages"}."""
        if isinstance(item, str):
            return self.read(item)
        if not isinstance(item, Mapping):
            raise PromptError(f"request {index}: a {type(item).__name__} came; wanted a prompt or a dict")
        if item.get("adapter") is not None:
            raise UnsupportedError(
                f"request {index}: adapters by name are not supported; load one with adapter="
            )
        unknown = item.keys() - {"prompt", "messages", "images", "adapter"}
        if unknown or ("prompt" in item) == ("messages" in item):
            raise PromptError(
                f"request {index}: keys {sorted(map(str, item))}; "
                'wanted {"prompt", "images"} or {"messages"}'
            )
        try:
            return self.read(item["prompt"] if "prompt" in item else item["messages"], item.get("images"))
        except PromptError as error:
            raise type(error)(f"request {index}: {error}") from None

    def pixels(self, pictures: Sequence[object]) -> Tensor | None:
        """float32 (n, 3, S, S), or None for no pictures."""
        return torch.stack([self.processor(picture) for picture in pictures]) if pictures else None


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
