"""What a training source yields before it is tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from owl_fast.prompts import Message


@dataclass(frozen=True)
class Sample:
    """One conversation; every assistant message is learned.

    messages: OpenAI style. A part {"type": "image", "image": k} with an int k stands for images[k]; any other
    value is the picture itself. record: where it came from ("train.jsonl:17"), used by error messages.
    """

    messages: Sequence[Message]
    images: Sequence[Any] = ()
    record: str = "sample"


@dataclass(frozen=True)
class Caption:
    """A picture and its caption: stage 1 learns the caption and the EOS behind it.

    with_header puts both into the conversation form of stage 2.
    """

    image: Any
    text: str
    with_header: bool = False
    record: str = "caption"
