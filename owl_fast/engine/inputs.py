"""From what a caller passes to what the engine runs: ids and pixels, for both doors (prompts.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from owl_fast.errors import ImageError, PromptError, UnsupportedError
from owl_fast.fetch import Fetcher
from owl_fast.images import ImageProcessor
from owl_fast.prompts import (
    IMAGE_TEXT,
    VIDEO_TEXT,
    ImagePiece,
    Message,
    TextPiece,
    chat_pieces,
    check_images,
    encode,
    raw_pieces,
)
from owl_fast.tokenizer import Tokenizer
from owl_fast.video import Video, load_frames

Prompt = str | Sequence[Message]
PromptItem = str | Mapping[str, Any]


@dataclass(frozen=True)
class PreparedPrompt:
    """ids with IMAGE_ID where rows of pictures and videos stand; pixels of each in order: (3, S, S), or
    (T, 3, S, S) of a video; the name of the adapter asked for, None when none was named; begun: the ids end
    inside an answer that is to go on."""

    ids: list[int]
    pixels: list[Tensor]
    adapter: str | None = None
    begun: bool = False


@dataclass(frozen=True)
class InputReader:
    """Tokenizes prompts and loads their pictures. PromptError and ImageError for what does not fit.

    videos: whether the model takes them. If not, a video in a message counts as so many pictures, as the
    original's demonstration did. pictures_only: what the model's pictures go through takes none all the same.
    """

    tokenizer: Tokenizer
    processor: ImageProcessor
    image_rows: int
    fetcher: Fetcher
    videos: bool = False
    pictures_only: bool = False

    def read(
        self, prompt: Prompt, images: Sequence[object] | None = None, adapter: str | None = None
    ) -> PreparedPrompt:
        """A raw prompt with its pictures, or messages that carry theirs."""
        if not isinstance(prompt, Sequence):
            raise PromptError(f"a {type(prompt).__name__} came; wanted a text or a list of messages")
        if isinstance(prompt, str):
            pieces, pictures = raw_pieces(prompt, self.videos), list(as_list(images))
            check_images(pieces, len(pictures))
            places = [piece for piece in pieces if isinstance(piece, ImagePiece)]
            pictures = [_for_place(p, place) for p, place in zip(pictures, places, strict=True)]
        else:
            if images:
                raise PromptError(
                    f"{len(images)} picture(s) came beside messages; put them into the messages as parts "
                    '{"type": "image", "image": ...}'
                )
            pieces, pictures = chat_pieces(prompt, videos=self.videos)
        ids = encode(pieces, self.tokenizer, self.image_rows)
        begun = any(isinstance(piece, TextPiece) and piece.supervised for piece in pieces)
        return PreparedPrompt(ids, self.pixels(pictures), adapter, begun)

    def read_item(self, item: PromptItem, where: str, adapter: str | None = None) -> PreparedPrompt:
        """One entry of a list of requests: a raw prompt, {"prompt", "images"} or {"messages"}, each dict with
        an "adapter" if it wants one of its own. where: stands before what is said of an error."""
        if isinstance(item, str):
            return self.read(item, adapter=adapter)
        if not isinstance(item, Mapping):
            raise PromptError(f"{where}a {type(item).__name__} came; wanted a prompt or a dict")
        unknown = item.keys() - {"prompt", "messages", "images", "adapter"}
        if unknown or ("prompt" in item) == ("messages" in item):
            raise PromptError(
                f"{where}keys {sorted(map(str, item))}; "
                'wanted {"prompt", "images"} or {"messages"}, and "adapter" if one is meant'
            )
        prompt = item["prompt"] if "prompt" in item else item["messages"]
        own = item.get("adapter")
        try:
            return self.read(prompt, item.get("images"), adapter if own is None else own)
        except (PromptError, ImageError) as error:
            raise type(error)(f"{where}{error}") from None

    def pixels(self, pictures: Sequence[object] | None) -> list[Tensor]:
        """float32 (3, S, S) of each picture, (T, 3, S, S) of each video."""
        return [self._pixels(self.load(picture)) for picture in as_list(pictures)]

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

    def _pixels(self, picture: object) -> Tensor:
        if not isinstance(picture, Video):
            return self.processor(picture)
        if not self.videos:
            raise UnsupportedError("this model takes no videos; put it into a message, or pass its frames")
        if self.pictures_only:
            raise UnsupportedError(
                "a video came, and an ONNX file sees pictures alone; load the model without vision=, or pass "
                "frames as pictures"
            )
        return torch.stack([self.processor.frame(frame) for frame in load_frames(picture)])


def is_one(prompt: str | Sequence[PromptItem]) -> TypeGuard[Prompt]:
    """True for a raw prompt and for one conversation, False for a list of requests."""
    return isinstance(prompt, str) or (
        isinstance(prompt, Sequence)
        and bool(prompt)
        and isinstance(prompt[0], Mapping)
        and "role" in prompt[0]
    )


def _for_place(picture: object, place: ImagePiece) -> object:
    """What stands at a place of a raw prompt; at the place of a video anything is read as one."""
    if place.video and not isinstance(picture, Video):
        return Video(picture)
    if isinstance(picture, Video) and not place.video:
        raise PromptError(f"a video came for an {IMAGE_TEXT} place; write {VIDEO_TEXT} there")
    return picture


def as_list(images: Sequence[object] | None) -> Sequence[object]:
    """The pictures somebody passed, none for None; PromptError for a single one."""
    if images is None:
        return ()
    if isinstance(images, (list, tuple)):
        return images
    raise PromptError(f"images is a {type(images).__name__}; wanted a list, one entry per picture")
