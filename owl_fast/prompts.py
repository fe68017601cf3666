"""Conversations -> pieces -> token ids, for inference and for training.

Two doors. raw_pieces takes a prompt the caller wrote out: "<image>" is a picture, "</s>" the special id.
chat_pieces and training_pieces take messages (OpenAI style): everything a person typed is words, pictures
come only as parts, and the roles are written by the template alone:

    <header>
    Human: <image>
    Human: What is in the picture?
    AI:

Text is tokenized piece by piece, as the original does: its pieces are what stands between pictures
(inference) or between the markers "\\nHuman: ", "AI: " and pictures (training).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from owl_fast.errors import DataError, PromptError, Reason
from owl_fast.tokenizer import Tokenizer
from owl_fast.video import FRAMES, Video, load_frames

IMAGE_ID = -1
IMAGE_TEXT = "<image>"
VIDEO_TEXT = "<|video|>"
HEADER = (
    "The following is a conversation between a curious human and AI assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

Message = Mapping[str, Any]

# Where a reader sees a new line, so that no typed text looks like a turn of the template; characters without
# width or ink, and marks on other characters, do not hide a marker from people.
_LINE_END = re.compile("([\n\r\v\f\x1c-\x1e\x85\u2028\u2029])")
_MARKERS = ("Human:", "AI:")
_UNSEEN = frozenset(("Cc", "Cf", "Cn", "Me", "Mn"))  # Unicode's categories; a tab is one of them, and seen
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # of others
# In written-out records: a marker stands at the start of a line, followed by a space or nothing.
_RECORD_TURN = re.compile(r"^(Human|AI):(?: |$)", re.MULTILINE)


@dataclass(frozen=True)
class TextPiece:
    """Text tokenized in one call. supervised: an answer, to be learned together with the EOS behind it.
    literal: special names such as "</s>" inside are words."""

    text: str
    supervised: bool = False
    literal: bool = True


@dataclass(frozen=True)
class ImagePiece:
    """The place of one picture or video: image_rows positions. video: a raw prompt asks for a video there."""

    video: bool = False


Piece = TextPiece | ImagePiece


@dataclass(frozen=True)
class _Line:
    """One turn line of the template; text None: a picture stands there."""

    role: str
    text: str | None


# --- the raw door -----------------------------------------------------------------------------------------


def raw_pieces(prompt: str, videos: bool = False) -> list[Piece]:
    """Pieces of a prompt whose roles and "<image>" marks the caller wrote; empty texts are dropped.

    videos: the model takes them, and "<|video|>" is the place of one; else that is text.
    """
    marks = (IMAGE_TEXT, VIDEO_TEXT) if videos else (IMAGE_TEXT,)
    pieces: list[Piece] = []
    for text in re.split("(" + "|".join(map(re.escape, marks)) + ")", prompt):
        if text in marks:
            pieces.append(ImagePiece(video=text == VIDEO_TEXT))
        elif text:
            pieces.append(TextPiece(text, literal=False))
    return pieces


def check_images(pieces: Sequence[Piece], images: int) -> None:
    """PromptError unless the prompt has a place for every picture and a picture for every place."""
    places = sum(isinstance(piece, ImagePiece) for piece in pieces)
    if places != images:
        raise PromptError(
            f"the prompt has {places} {IMAGE_TEXT} place(s), {images} picture(s) came; "
            "give one picture per place"
        )


def encode(pieces: Sequence[Piece], tokenizer: Tokenizer, image_rows: int) -> list[int]:
    """Prompt ids: BOS, then the pieces; each picture is image_rows times IMAGE_ID. No EOS."""
    ids = [tokenizer.bos_id]
    for piece in pieces:
        ids += _piece_ids(piece, tokenizer, image_rows)
    return ids


def _piece_ids(piece: Piece, tokenizer: Tokenizer, image_rows: int) -> list[int]:
    if isinstance(piece, ImagePiece):
        return [IMAGE_ID] * image_rows
    return tokenizer.encode(piece.text, literal=piece.literal)


# --- the messages door ------------------------------------------------------------------------------------


def chat_pieces(
    messages: Sequence[Message], system: str | None = None, videos: bool = True
) -> tuple[list[Piece], list[Any]]:
    """Prompt of a conversation -> (pieces ending in "AI: ", pictures in order).

    When the last message is the assistant's, it is an answer that is to go on: the last piece is it, cut and
    marked as answers are in training.

    A message is {"role": "system" | "developer" | "user" | "assistant", "content": text or list of parts}, a
    part {"type": "text", "text"}, {"type": "image", "image"}, {"type": "image_url", "image_url": {"url"}} or
    {"type": "video", "video", "num_frames": 4 by default}; a video is a video.Video among the pictures.
    System messages come first and replace the header, as `system` does when there is none; "" leaves it out.
    videos: the model takes them; if not, the frames of each are opened and stand there as pictures.
    PromptError names the message that does not fit.
    """
    header, lines, images = _read_messages(messages, system)
    begun = lines.pop().text if lines[-1].role == "AI" else None
    if not lines:
        raise PromptError("no user message came; an answer that goes on needs its question")
    pieces: list[Piece] = []
    text = header
    for line in lines:
        text += f"\n{line.role}: " if text or pieces else f"{line.role}: "
        if line.text is None:
            pieces += [TextPiece(text), ImagePiece()]
            text = ""
        else:
            text += line.text
    pieces.append(TextPiece(text + "\nAI: "))
    if begun:
        pieces.append(TextPiece(begun, supervised=True))
    return (pieces, images) if videos else _spread_videos(pieces, images)


def _spread_videos(pieces: Sequence[Piece], pictures: Sequence[Any]) -> tuple[list[Piece], list[Any]]:
    """The frames of each video as pictures, in lines of their own, as the original shows them."""
    spread: list[Piece] = []
    shown: list[Any] = []
    sources = iter(pictures)
    for piece in pieces:
        if not isinstance(piece, ImagePiece):
            spread.append(piece)
            continue
        source = next(sources)
        frames = load_frames(source) if isinstance(source, Video) else [source]
        shown += frames
        spread.append(ImagePiece())
        for _ in frames[1:]:
            spread += [TextPiece("\nHuman: "), ImagePiece()]
    return spread, shown


def check_messages(messages: Sequence[Message]) -> None:
    """PromptError names the message or part that is malformed. Anybody may speak last; pictures stay shut."""
    # The last turn is there because a conversation without one is malformed too.
    _read_messages([*messages, {"role": "user", "content": ""}], None)


def _read_messages(messages: Sequence[Message], system: str | None) -> tuple[str, list[_Line], list[Any]]:
    """Header, turn lines and pictures of messages, with typed role markers made harmless."""
    headers: list[str] = []
    lines: list[_Line] = []
    images: list[Any] = []
    for i, message in enumerate(messages):
        where = f"message {i}"
        role, runs = _read_message(message, where)
        pictures = [run for run in runs if not isinstance(run, str)]
        if role != "user" and pictures:
            raise PromptError(f"{where}: a picture in a {role} message; only user messages carry pictures")
        if role in ("system", "developer"):
            if lines:
                raise PromptError(f"{where}: a {role} message after the first turn; put it at the beginning")
            headers += [run for run in runs if isinstance(run, str)]
            continue
        images += [picture.source for picture in pictures]
        turn = "Human" if role == "user" else "AI"
        lines += [_Line(turn, _guard(run) if isinstance(run, str) else None) for run in runs]
    if not lines:
        raise PromptError("no user message came; a conversation needs at least one")
    if not headers:
        headers = [HEADER if system is None else system]
    return _guard("\n".join(headers)), lines, images


def _guard(text: str) -> str:
    """One space before a role marker that begins a line of typed text."""
    return "".join(f" {line}" if _looks_like_a_turn(line) else line for line in _LINE_END.split(text))


def _looks_like_a_turn(line: str) -> bool:
    seen = ""
    for letter in line:
        if letter in _BLANK or (letter != "\t" and unicodedata.category(letter) in _UNSEEN):
            continue
        seen += letter
        if not any(marker.startswith(seen) for marker in _MARKERS):
            return False
        if seen in _MARKERS:
            return True
    return False


@dataclass(frozen=True)
class _Picture:
    source: Any


def _read_message(message: Message, where: str) -> tuple[str, list[str | _Picture]]:
    """Role and runs of text and pictures; neighbouring text parts are joined by line ends."""
    if not isinstance(message, Mapping):
        raise PromptError(f'{where}: a {type(message).__name__} came, wanted {{"role": ..., "content": ...}}')
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise PromptError(f"{where}: role {role!r:.40}; wanted system, developer, user or assistant")
    if isinstance(content, str):
        return role, [content]
    if not isinstance(content, (list, tuple)):
        raise PromptError(f"{where}: content is {type(content).__name__}; wanted text or a list of parts")
    runs: list[str | _Picture] = []
    read = (_read_part(part, f"{where}, part {k}") for k, part in enumerate(content))
    for is_text, group in groupby(read, key=lambda run: isinstance(run, str)):
        neighbours = list(group)
        runs += ["\n".join(map(str, neighbours))] if is_text else neighbours
    if any(isinstance(run, _Picture) for run in runs):
        runs = [run for run in runs if run != ""]
    return role, runs or [""]


def _read_part(part: Any, where: str) -> str | _Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image" and part.get("image") is not None:
        return _Picture(part["image"])
    if kind == "video" and part.get("video") is not None:
        return _Picture(Video(part["video"], part.get("num_frames", FRAMES)))
    if kind == "image_url":
        outer = part.get("image_url")
        url = outer.get("url") if isinstance(outer, Mapping) else None
        # A plain path here could come from a stranger's request: paths are given as "image" parts only.
        if isinstance(url, str) and url.startswith(("data:", "http:", "https:")):
            return _Picture(url)
        raise PromptError(f'{where}: image_url wants {{"url": "data:..." or "https://..."}}')
    raise PromptError(
        f'{where}: wanted {{"type": "text", "text": ...}}, {{"type": "image", "image": ...}}, '
        '{"type": "video", "video": ...} or {"type": "image_url", "image_url": {"url": ...}}'
    )


# --- training ---------------------------------------------------------------------------------------------


def training_pieces(messages: Sequence[Message], system: str | None = None) -> tuple[list[Piece], list[Any]]:
    """Pieces of a whole conversation, answers supervised -> (pieces, pictures in order).

    Cut where the original cuts: "\\nHuman: " and "AI: " are pieces of their own, the line end before "AI: "
    belongs to the text before it; an empty answer stays, to be learned as EOS alone. Messages as for
    chat_pieces.
    """
    header, lines, images = _read_messages(messages, system)
    pieces: list[Piece] = []
    text = header

    def close() -> None:
        nonlocal text
        if text:
            pieces.append(TextPiece(text))
        text = ""

    for line in lines:
        begun = bool(text or pieces)
        if line.role == "AI":
            text += "\n" if begun else ""
            close()
            pieces += [TextPiece("AI: "), TextPiece(line.text or "", supervised=True)]
            continue
        if begun:
            close()
            pieces.append(TextPiece("\nHuman: "))
        else:
            text = "Human: "
        if line.text is None:
            close()
            pieces.append(ImagePiece())
        else:
            text += line.text
    close()
    return pieces, images


def caption_pieces(caption: str, with_header: bool = False) -> list[Piece]:
    """Stage 1: a picture, then its caption (supervised); with_header puts both into a conversation."""
    if not with_header:
        return [ImagePiece(), TextPiece(caption, supervised=True)]
    picture = {"role": "user", "content": [{"type": "image", "image": 0}]}
    return training_pieces([picture, {"role": "assistant", "content": caption}])[0]


def encode_training(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    image_rows: int,
    max_length: int,
    name: str = "record",
    cut_answers: bool = True,
) -> tuple[list[int], list[bool]]:
    """(ids, supervised), at most max_length + 1 long, unpadded; supervised[i] is about ids[i] itself.

    BOS first. An answer is cut so that its EOS still fits, and supervised including it; other text is cut at
    max_length + 1; a picture that does not fit ends the sample, so that the first
    ids.count(IMAGE_ID) // image_rows pictures are used. DataError names the record when there is no answer,
    when no supervised token is left and, unless cut_answers, when an answer alone is longer than the context.
    """
    if not any(isinstance(piece, TextPiece) and piece.supervised for piece in pieces):
        raise DataError(f"{name}: no answer in it; nothing to learn from", Reason.NO_ANSWER)
    ids, supervised = [tokenizer.bos_id], [False]
    for piece in pieces:
        room = max_length + 1 - len(ids)
        if room <= 0 or (isinstance(piece, ImagePiece) and image_rows > room):
            break
        answer = isinstance(piece, TextPiece) and piece.supervised
        new = _piece_ids(piece, tokenizer, image_rows)
        if answer and not cut_answers and len(new) >= max_length:
            raise DataError(
                f"{name}: an answer of {len(new)} tokens, longer than max_length {max_length}; "
                "shorten it or raise max_length",
                Reason.TOO_LONG,
            )
        new = [*new[: room - 1], tokenizer.eos_id] if answer else new[:room]
        ids += new
        supervised += [answer] * len(new)
    if not any(supervised):
        raise DataError(
            f"{name}: no answer token within max_length {max_length}; shorten the prompt or raise max_length",
            Reason.ALL_MASKED,
        )
    return ids, supervised


def parse_record_text(text: str, n_images: int, name: str = "record") -> list[dict[str, Any]]:
    """Messages of a record in the original's written-out form ("<header>\\nHuman: ...\\nAI: ...").

    A role marker counts only at the start of a line. What stands before the first one is the system message,
    "" when there is nothing. With n_images > 0 each "<image>" is a part {"type": "image", "image": i},
    i counting through the record, and must occur n_images times; without pictures it is a word.
    DataError names the record: wrong number of pictures, a picture in an answer, or no answer at all.
    """
    places = text.count(IMAGE_TEXT)
    if n_images and places != n_images:
        raise DataError(
            f"{name}: {n_images} picture(s), but {places} {IMAGE_TEXT} in the text", Reason.PICTURE_COUNT
        )
    marks = list(_RECORD_TURN.finditer(text))
    if not any(mark[1] == "AI" for mark in marks):
        raise DataError(f'{name}: no line begins with "AI: "; nothing to learn from', Reason.NO_ANSWER)
    starts = [mark.start() for mark in marks]
    # The line end before a marker belongs to the template.
    head = text[: starts[0]].removesuffix("\n")
    bodies = [text[mark.end() : end].removesuffix("\n") for mark, end in zip(marks, starts[1:], strict=False)]
    bodies.append(text[marks[-1].end() :])

    parts: list[str | int] = _split_pictures(head, 0) if n_images else [head]
    header = parts.pop(0) if isinstance(parts[0], str) else ""
    messages: list[dict[str, Any]] = [{"role": "system", "content": header}]
    if parts:
        messages.append({"role": "user", "content": _as_content(parts)})
    seen = head.count(IMAGE_TEXT)
    for mark, body in zip(marks, bodies, strict=True):
        if mark[1] == "AI" and n_images and IMAGE_TEXT in body:
            raise DataError(
                f"{name}: {IMAGE_TEXT} inside an answer; pictures belong to the human's turns",
                Reason.PICTURE_COUNT,
            )
        parts = _split_pictures(body, seen) if n_images else [body]
        seen += body.count(IMAGE_TEXT)
        role = "user" if mark[1] == "Human" else "assistant"
        messages.append({"role": role, "content": _as_content(parts)})
    return messages


def picture_content(text: str, first: int = 0) -> str | list[dict[str, Any]]:
    """Content of a user's message in which each "<image>" is a picture, numbered from `first`."""
    return _as_content(_split_pictures(text, first))


def _split_pictures(text: str, first: int) -> list[str | int]:
    """Text and picture numbers in order; white space next to a picture goes, empty texts with it."""
    texts = text.split(IMAGE_TEXT)
    if len(texts) == 1:
        return [text]
    runs: list[str | int] = []
    for i, run in enumerate(texts):
        if i:
            runs.append(first + i - 1)
        if run.strip():
            runs.append(run.strip())
    return runs


def _as_content(runs: list[str | int]) -> str | list[dict[str, Any]]:
    if len(runs) == 1 and isinstance(runs[0], str):
        return runs[0]
    return [
        {"type": "text", "text": run} if isinstance(run, str) else {"type": "image", "image": run}
        for run in runs
    ]
