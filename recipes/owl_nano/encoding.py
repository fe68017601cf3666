"""Conversations and statements -> token ids and labels.

Two forms of every conversation are trained. The training form cuts the text at each role marker and ends
every answer with EOS; the chat form is what the engine sends at inference: the history is one piece of text
without EOS and only the last answer is supervised (SentencePiece marks the start of a piece, so they differ).

A picture is a Stand: its rows are real (the abstractor's) or, while the language model learns without eyes,
either the caption's text or rows that are sums of word vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from owl_fast.prompts import IMAGE_ID, ImagePiece, Piece, TextPiece, chat_pieces, training_pieces
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.packing import IGNORED
from recipes.owl_nano.dialogues import Dialogue
from recipes.owl_nano.settings import QUERIES
from recipes.owl_nano.statements import Sentence
from recipes.owl_nano.world import Scene

BOS, EOS = 1, 2
IMAGE_ROWS = QUERIES + 1
Form = Literal["chat", "training"]


@dataclass
class Encoded:
    """ids: -1 stands for a picture row. labels: the id where it is supervised, else -100; not shifted.

    rows: for stand-in pictures, the token ids whose vectors are summed in each picture row, in order.
    kinds: of each supervised token, the direction of the statement it is in ("" elsewhere).
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, ids: list[int], supervised: bool = False, kind: str = "") -> None:
        self.ids += ids
        self.labels += ids if supervised else [IGNORED] * len(ids)
        if supervised:
            self.kinds += [kind] * len(ids)

    def add_rows(self, rows: list[tuple[int, ...]]) -> None:
        self.add([IMAGE_ID] * len(rows))
        self.rows += rows


AddPicture = Callable[[Encoded, Scene], None]


def mark_picture(result: Encoded, scene: Scene) -> None:
    """The rows that the abstractor fills."""
    result.add_rows([()] * IMAGE_ROWS)


class Encoder:
    """Encodes samples with one tokenizer; text pieces are remembered, since the same ones come often."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 200_000:
                self._known.clear()
            self._known[text] = self.tokenizer.encode(text, literal=True)
        return self._known[text]

    def dialogue(self, dialogue: Dialogue, form: Form, add_picture: AddPicture) -> Encoded:
        result = Encoded()
        result.add([BOS])
        scenes = iter(dialogue.scenes)
        for piece in pieces(dialogue, form):
            if isinstance(piece, ImagePiece):
                add_picture(result, next(scenes))
            else:
                result.add(self.text(piece.text) + ([EOS] if piece.supervised else []), piece.supervised)
        return result

    def sentences(self, result: Encoded, sentences: list[tuple[str, Sentence]]) -> None:
        """Append statements; only the decided words are supervised."""
        for direction, sentence in sentences:
            before = ""
            done = 0
            for text, decided in sentence:
                before += text if text == "." or not before else " " + text
                ids = self.text(before)
                result.add(ids[done:], decided, direction)
                done = len(ids)


def pieces(dialogue: Dialogue, form: Form) -> list[Piece]:
    """The conversation cut as the engine (chat) or the trainer (training) cuts it."""
    messages = dialogue.messages()
    if form == "training":
        return training_pieces(messages)[0]
    return [*chat_pieces(messages[:-1])[0], TextPiece(messages[-1]["content"], supervised=True)]
