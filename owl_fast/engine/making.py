"""From what a caller asks to a request the loop can run; what can never run is refused here."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from owl_fast.engine.adapters import Adapters
from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.inputs import InputReader, PreparedPrompt, Prompt, PromptItem
from owl_fast.engine.outputs import TextStream
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import ContextLengthError, ParameterError, PromptError, UnsupportedError
from owl_fast.prompts import IMAGE_ID
from owl_fast.tokenizer import StreamDecoder


@dataclass(frozen=True)
class RequestMaker:
    """Knows what an engine can take: positions of its context, rows of its batch, its adapters."""

    reader: InputReader
    adapters: Adapters
    max_context: int
    max_batch: int

    def read(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        images: Sequence[object] | None,
        adapter: str | None,
        options: Mapping[str, Any],
    ) -> Request:
        """The request of one prompt; arguments as for Engine.generate."""
        return self(self.reader.read(prompt, images, adapter), chosen(params, options))

    def read_list(
        self,
        prompts: Sequence[PromptItem],
        params: SamplingParams | None,
        images: Sequence[object] | None,
        adapter: str | None,
        options: Mapping[str, Any],
    ) -> list[Request]:
        """The requests of a list; nothing has begun if one of them does not fit."""
        if images is not None:
            raise PromptError(
                'images came beside a list of requests; give {"prompt": ..., "images": [...]} entries'
            )
        if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
            raise PromptError(
                f"a {type(prompts).__name__} came; wanted a text, a list of messages or a list of requests"
            )
        common = chosen(params, options)
        items = [self.reader.read_item(item, index, adapter) for index, item in enumerate(prompts)]
        return [self(item, common) for item in items]

    def __call__(
        self, prepared: PreparedPrompt, params: SamplingParams, continuation: Sequence[int] = ()
    ) -> Request:
        """continuation: ids behind the prompt that are only to be scored."""
        length, left = len(prepared.ids), self.max_context - len(prepared.ids)
        wanted = 1 if params.max_tokens is None else params.max_tokens
        if wanted > left:
            pictures = prepared.ids.count(IMAGE_ID)
            raise ContextLengthError(
                f"the prompt takes {length} positions ({pictures} of them pictures) and {wanted} more were "
                f"asked for: {length + wanted}, the context has {self.max_context}; "
                "shorten the prompt or ask for fewer tokens"
            )
        if params.beams > self.max_batch:
            raise UnsupportedError(
                f"beams={params.beams} is more than max_batch={self.max_batch}; raise max_batch"
            )
        tokenizer = self.reader.tokenizer
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        max_tokens = left if params.max_tokens is None else params.max_tokens
        return Request(
            prompt_ids=[*prepared.ids, *continuation],
            params=params,
            max_tokens=max_tokens,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            bos_id=bos,
            text=TextStream(StreamDecoder(tokenizer, prepared.begun), params.stop_strings),
            pixels=prepared.pixels,
            score_from=length if continuation else None,
            beams=BeamSearch(params, bos, eos, max_tokens) if params.beams > 1 else None,
            adapter=self.adapters.find(prepared.adapter),
        )


def chosen(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """What a call asks for: its options over its params over the defaults."""
    if not isinstance(params, SamplingParams | None):
        raise ParameterError(
            f"params is a {type(params).__name__}; wanted SamplingParams, or the options by name"
        )
    return (params or SamplingParams()).changed(options)
