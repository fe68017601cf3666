"""Text <-> token ids: the LLaMA SentencePiece model, used directly.

The ids are those of the slow LLaMA tokenizer the original was trained with: no automatic BOS or EOS,
padding = <unk>, every call of encode gets SentencePiece's own dummy prefix (a leading "▁").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from owl_fast.errors import CheckpointError
from owl_fast.files import read_bytes

# LLaMA's file has 0.5 MB, the largest vocabularies in use about 5 MB.
MAX_FILE_BYTES = 8 << 20
RARE = "\U0010ffff"  # a character in no vocabulary


class Tokenizer:
    """A SentencePiece model. Thread-safe: nothing changes after construction."""

    def __init__(self, processor: Any, literal_specials: bool = False) -> None:
        """processor: a loaded sentencepiece.SentencePieceProcessor; from_file is the usual way.
        literal_specials: names such as "</s>" are words in every text, as in the first release."""
        self._processor = processor
        self._literal_specials = literal_specials
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()
        self.unk_id: int = processor.unk_id()
        # LLaMA's model has no padding piece; the original pads training rows with <unk>.
        self.pad_id: int = processor.pad_id() if processor.pad_id() >= 0 else self.unk_id
        self.special_ids = frozenset((self.bos_id, self.eos_id, self.unk_id, self.pad_id))
        self._special_texts = {processor.id_to_piece(i): i for i in sorted(self.special_ids)}
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, self._special_texts)) + ")")

    @classmethod
    def from_file(cls, path: str | Path, literal_specials: bool = False) -> Tokenizer:
        """Read tokenizer.model; CheckpointError: missing, broken, or without <unk>, <s>, </s> and bytes."""
        import sentencepiece

        path = Path(path)
        if not path.exists():
            raise CheckpointError(
                f"{path}: no such file; a model folder holds the SentencePiece file tokenizer.model"
            )
        model = read_bytes(path, MAX_FILE_BYTES)
        broken = f"{path}: not a SentencePiece model ({len(model)} bytes); copy tokenizer.model anew"
        if not model:
            raise CheckpointError(broken)
        # Errors come as exceptions; of warnings a damaged file can cause 10^5.
        sentencepiece.set_min_log_level(2)
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            for piece_id in range(processor.vocab_size()):
                processor.id_to_piece(piece_id)  # fails for a piece that is no text
        except (RuntimeError, ValueError, OSError):
            raise CheckpointError(broken) from None
        special = {"<unk>": processor.unk_id(), "<s>": processor.bos_id(), "</s>": processor.eos_id()}
        for name, piece_id in special.items():
            if piece_id < 0:
                raise CheckpointError(f"{path}: the vocabulary has no {name} piece; LLaMA's has one")
        if processor.unk_id() in processor.encode(RARE):
            raise CheckpointError(f"{path}: the vocabulary has no byte pieces; characters would be lost")
        return cls(processor, literal_specials)

    @property
    def model_bytes(self) -> bytes:
        """The content of a tokenizer.model with this model in it."""
        return bytes(self._processor.serialized_model_proto())

    def encode(self, text: str, *, literal: bool) -> list[int]:
        """Ids of one piece of text, without BOS and EOS.

        literal=True: everything is words, "</s>" included; no special id can come out. literal=False: "<s>",
        "</s>" and "<unk>" become their ids and the text around each is tokenized on its own, unless the
        tokenizer was made with literal_specials.
        Lone surrogates count as U+FFFD.
        """
        text = _without_surrogates(text)
        if literal or self._literal_specials:
            return list(self._processor.encode(text))
        ids: list[int] = []
        for part in self._special_pattern.split(text):
            if part in self._special_texts:
                ids.append(self._special_texts[part])
            elif part:
                ids += self._processor.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special ids, picture rows (negative) and ids past the vocabulary give nothing.

        A model may have more output rows than the tokenizer has pieces (padded vocabularies), hence the last.
        """
        return str(self._processor.decode([i for i in ids if self._has_text(i)]))

    def token_bytes(self, token_id: int) -> bytes:
        """What one token is inside a text, as UTF-8 that may end inside a character; a special one its name,
        one past the vocabulary nothing."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        piece = self._piece(token_id)
        if self._is_byte(token_id):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace("▁", " ").encode()

    def _has_text(self, token_id: int) -> bool:
        return 0 <= token_id < self.vocab_size and token_id not in self.special_ids

    def _is_byte(self, token_id: int) -> bool:
        return bool(self._processor.is_byte(token_id))

    def _piece(self, token_id: int) -> str:
        return str(self._processor.id_to_piece(token_id))


class StreamDecoder:
    """Ids one by one -> text pieces that never end inside a character.

    The pieces returned by push, with flush() at the end, add up to Tokenizer.decode of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, begun: bool = False) -> None:
        """begun: the ids go on with a text, so that the first one keeps the space in front of its word."""
        self._tokenizer = tokenizer
        self._bytes = b""  # byte-fallback pieces that do not make a whole character yet
        self._started = begun

    def push(self, token_id: int) -> str:
        """The text that became certain with this id; "" while a character is incomplete."""
        tokenizer = self._tokenizer
        if not tokenizer._has_text(token_id):
            return ""
        first, self._started = not self._started, True
        piece = tokenizer._piece(token_id)
        if tokenizer._is_byte(token_id):
            self._bytes += bytes([int(piece[1:-1], 16)])  # "<0xE2>"
            return self._take(final=False)
        # SentencePiece takes the dummy prefix off the first piece of a text.
        text = tokenizer.decode([token_id]) if first else piece.replace("▁", " ")
        return self._take(final=True) + text

    def flush(self) -> str:
        """The rest, when no more ids come: each byte of an unfinished character is one U+FFFD."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        text = ""
        while self._bytes:
            length = _utf8_length(self._bytes[0])
            head, tail = self._bytes[:length], self._bytes[1:length]
            if not final and len(head) < length and all(0x80 <= b < 0xC0 for b in tail):
                break
            try:
                text += head.decode("utf-8")
            except UnicodeDecodeError:
                # As SentencePiece does: one replacement for one byte, then try again behind it.
                text, length = text + "\ufffd", 1
            self._bytes = self._bytes[length:]
        return text


def _utf8_length(lead: int) -> int:
    """Bytes of the character a lead byte announces; 1 for bytes that cannot lead."""
    if 0xC2 <= lead < 0xE0:
        return 2
    if 0xE0 <= lead < 0xF0:
        return 3
    return 4 if 0xF0 <= lead < 0xF5 else 1


def _without_surrogates(text: str) -> str:
    """Lone surrogates (JSON lets them through) have no UTF-8 form: they become U+FFFD, pairs are joined."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
