"""From what a caller asks to requests the loop can run; what can never run is refused here."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import Any

from owl_fast.engine.adapters import Adapters
from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.blocks import BLOCK_SIZE, blocks_for
from owl_fast.engine.inputs import InputReader, PreparedPrompt, Prompt, PromptItem, is_one
from owl_fast.engine.outputs import TextStream
from owl_fast.engine.pictures import Picture
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import SamplingParams, seed_of
from owl_fast.engine.speculation import Guesser
from owl_fast.errors import ContextLengthError, ParameterError, PromptError, UnsupportedError
from owl_fast.prompts import IMAGE_ID
from owl_fast.tokenizer import StreamDecoder


@dataclass(frozen=True)
class RequestMaker:
    """Knows what an engine can take: positions of its context, rows of its batch, blocks of its cache, its
    adapters.

    A prompt becomes as many requests as answers are wanted; they share its pictures, and through the cache
    its keys and values. held: names the weights, the form of the cache and what pictures go through, on all
    of which keys and values depend. vocabulary: ids that have logits. guesses: whether answers are guessed
    on (speculation.py).
    """

    reader: InputReader
    adapters: Adapters
    max_context: int
    max_batch: int
    blocks: int
    held: str
    vocabulary: int
    guesses: bool

    def read(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        images: Sequence[object] | None,
        adapter: str | None,
        client: str,
        options: Mapping[str, Any],
    ) -> list[Request]:
        """The requests of one prompt; arguments as for Engine.generate."""
        return self(self.reader.read(prompt, images, adapter), chosen(params, options), client=client)

    def read_list(
        self,
        prompts: Sequence[PromptItem],
        params: SamplingParams | None,
        images: Sequence[object] | None,
        adapter: str | None,
        client: str,
        options: Mapping[str, Any],
    ) -> list[list[Request]]:
        """The requests of each prompt of a list; nothing has begun if one of them does not fit."""
        if images is not None:
            raise PromptError(
                'images came beside a list of requests; give {"prompt": ..., "images": [...]} entries'
            )
        if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
            raise PromptError(
                f"a {type(prompts).__name__} came; wanted a text, a list of messages or a list of requests"
            )
        common = chosen(params, options)
        listed = list(prompts)
        where = "request {}: " if len(listed) > 1 else ""
        items = [
            self.reader.read_item(item, where.format(index), adapter) for index, item in enumerate(listed)
        ]
        return [self(item, common, client=client) for item in items]

    def read_all(
        self,
        prompt: str | Sequence[PromptItem],
        params: SamplingParams | None,
        images: Sequence[object] | None,
        adapter: str | None,
        client: str,
        options: Mapping[str, Any],
    ) -> list[Request]:
        """One prompt's requests, or those of a list, counted through."""
        if is_one(prompt):
            return self.read(prompt, params, images, adapter, client, options)
        groups = self.read_list(prompt, params, images, adapter, client, options)
        requests = list(chain.from_iterable(groups))
        for index, request in enumerate(requests):
            request.index = index
        return requests

    def __call__(
        self,
        prepared: PreparedPrompt,
        params: SamplingParams,
        continuation: Sequence[int] = (),
        client: str = "",
    ) -> list[Request]:
        """continuation: ids behind the prompt that are only to be scored."""
        self._check(prepared, params, client)
        tokenizer = self.reader.tokenizer
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        adapter = self.adapters.find(prepared.adapter)
        length = len(prepared.ids)
        guesses = self.guesses and params.beams == 1 and not continuation
        max_tokens = self._max_tokens(length, params)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        pictures = [Picture(pixels) for pixels in prepared.pixels]
        root = sha256(f"{self.held} {adapter.sha256 if adapter else ''}".encode()).digest()
        return [
            Request(
                prompt_ids=[*prepared.ids, *continuation],
                params=params,
                max_tokens=max_tokens,
                seed=seed_of(seed, index),
                bos_id=bos,
                text=TextStream(StreamDecoder(tokenizer, prepared.begun), params.stop_strings),
                pictures=pictures,
                score_from=length if continuation else None,
                beams=BeamSearch(params, bos, eos, max_tokens) if params.beams > 1 else None,
                adapter=adapter,
                client=client,
                guesser=Guesser(prepared.ids) if guesses else None,
                root=root,
                index=index,
            )
            for index in range(params.n)
        ]

    def _max_tokens(self, length: int, params: SamplingParams) -> int:
        return self.max_context - length if params.max_tokens is None else params.max_tokens

    def _check(self, prepared: PreparedPrompt, params: SamplingParams, client: object) -> None:
        if not isinstance(client, str):
            raise ParameterError(f"client is a {type(client).__name__}; wanted a text that names it")
        length = len(prepared.ids)
        wanted = 1 if params.max_tokens is None else params.max_tokens
        if length + wanted > self.max_context:
            pictures = prepared.ids.count(IMAGE_ID)
            raise ContextLengthError(
                f"the prompt takes {length} positions ({pictures} of them pictures) and the answer up to "
                f"{wanted}: {length + wanted}, the context has {self.max_context}; "
                "shorten the prompt or ask for fewer tokens"
            )
        if params.beams > self.max_batch:
            raise UnsupportedError(
                f"beams={params.beams} is more than max_batch={self.max_batch}; raise max_batch"
            )
        positions = length + self._max_tokens(length, params)
        if params.beams * blocks_for(positions) > self.blocks:
            raise UnsupportedError(
                f"{params.beams} beams of {positions} positions are more than the {self.blocks * BLOCK_SIZE} "
                "of the cache; raise cache_positions, or ask for fewer tokens or beams"
            )
        for name, ids in (
            ("logit_bias", [token for token, _ in params.biases]),
            ("stop_token_ids", params.stop_token_ids),
        ):
            for token in ids:
                if token >= self.vocabulary:
                    raise ParameterError(
                        f"an id of {name} is {token}; the vocabulary has 0 to {self.vocabulary - 1}"
                    )


def chosen(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """What a call asks for: its options over its params over the defaults."""
    if not isinstance(params, SamplingParams | None):
        raise ParameterError(
            f"params is a {type(params).__name__}; wanted SamplingParams, or the options by name"
        )
    return (params or SamplingParams()).changed(options)
