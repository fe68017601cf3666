"""The facade: load a model, ask it, stream from it.

A prompt is a raw text with its roles and "<image>" marks written out, or a list of messages (prompts.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from owl_fast.checkpoints import load_model, open_source
from owl_fast.config import OwlConfig
from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.inputs import InputReader, PreparedPrompt, Prompt, PromptItem, is_messages
from owl_fast.engine.kv_cache import BlockAllocator, KVCache, blocks_for
from owl_fast.engine.loop import Loop, output
from owl_fast.engine.outputs import Output, TextStream
from owl_fast.engine.placement import pick_device, pick_dtype
from owl_fast.engine.request import Request
from owl_fast.engine.runner import Runner
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.scheduler import Scheduler
from owl_fast.engine.stream import Stream
from owl_fast.errors import CheckpointError, ContextLengthError, OwlError, PromptError, UnsupportedError
from owl_fast.images import ImageProcessor
from owl_fast.lora import load_adapter
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID
from owl_fast.tokenizer import StreamDecoder, Tokenizer

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "owl-nano"
# Rows of one step: long prompts are computed in chunks of this size beside the running answers.
STEP_TOKENS = 2048


class Engine:
    """A model ready to answer. One instance serves any number of requests, also from several threads."""

    def __init__(
        self,
        model: Owl,
        tokenizer: Tokenizer,
        processor: ImageProcessor,
        *,
        max_context: int = 2048,
        max_batch: int = 8,
        step_tokens: int = STEP_TOKENS,
    ) -> None:
        """max_context: positions of prompt and answer, at most what the model was made for; max_batch: rows
        generated at once (a beam is a row). The cache takes max_context * max_batch positions."""
        if max_context < 1 or max_batch < 1:
            raise PromptError(f"max_context {max_context}, max_batch {max_batch}; wanted at least 1 each")
        if tokenizer.vocab_size > model.config.llama.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} pieces, the model only "
                f"{model.config.llama.vocab_size}; they do not belong together"
            )
        self.config: OwlConfig = model.config
        self.model = model
        self.tokenizer = tokenizer
        self.max_context = min(max_context, model.config.llama.max_position_embeddings)
        self.max_batch = max_batch
        self._reader = InputReader(tokenizer, processor, model.config.image_rows, model.config.video)
        cache = KVCache(
            model.config.llama, max_batch * blocks_for(self.max_context), model.dtype, model.device
        )
        self._runner = Runner(model, cache)
        scheduler = Scheduler(BlockAllocator(cache.num_blocks), max_batch, max(step_tokens, max_batch))
        self._loop = Loop(scheduler, self._runner, tokenizer.eos_id)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        adapter: str | Path | None = None,
        tokenizer: str | Path | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        vision_heads: int | None = None,
        abstractor_heads: int | None = None,
        lora_alpha: float | None = None,
        max_context: int = 2048,
        max_batch: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Load a model folder or weight file (docs/checkpoints.md); without a path the bundled owl-nano.

        device: "auto" takes CUDA where there is one. dtype: fp32, bf16, fp16 or a torch dtype; "auto" is
        bf16 on CUDA (fp16 on GPUs without it), on a CPU fp32, or bf16 from a billion weights on.
        adapter: a folder with a LoRA adapter. tokenizer, config, vision_heads, abstractor_heads, lora_alpha:
        what the files do not tell, such as a .pth of the first release (see open_source).
        progress(bytes done, bytes in all) is called while loading.
        """
        folder = BUNDLED if path is None else Path(path)
        if path is None and not folder.is_dir():
            raise CheckpointError(
                "the bundled model owl-nano is not in this installation; give a model folder"
            )
        place = pick_device(device)
        source = open_source(
            folder,
            tokenizer=tokenizer,
            config=config,
            vision_heads=vision_heads,
            abstractor_heads=abstractor_heads,
            lora_alpha=lora_alpha,
        )
        words, pictures = source.tokenizer(), source.processor()
        weights = pick_dtype(dtype, place, source.config)
        model = load_model(source, dtype=weights, device=place, progress=progress)
        if adapter is not None:
            load_adapter(model, adapter)
        return cls(model, words, pictures, max_context=max_context, max_batch=max_batch)

    @overload
    def generate(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        **options: Any,
    ) -> Output: ...

    @overload
    def generate(
        self, prompt: Sequence[PromptItem], params: SamplingParams | None = None, **options: Any
    ) -> Output | list[Output]: ...

    def generate(
        self,
        prompt: str | Sequence[PromptItem],
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Answer one raw prompt or conversation, or a list of requests (in order, equal to one at a time).

        options are fields of SamplingParams and override those of params. One request that fails raises
        OwlError; of a list each failed one has finish_reason "error" and an error text.
        """
        chosen = replace(params or SamplingParams(), **options)
        if isinstance(prompt, str) or is_messages(prompt):
            prepared = self._reader.read(cast(Prompt, prompt), images)
            result = self._complete([self._request(prepared, chosen)])[0]
            return _raise_error(result)
        if images is not None:
            raise PromptError(
                'images came beside a list of requests; give {"prompt": ..., "images": [...]} entries'
            )
        items = [self._reader.read_item(item, index) for index, item in enumerate(prompt)]
        return self._complete([self._request(item, chosen) for item in items])

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        **options: Any,
    ) -> Stream:
        """The answer to one raw prompt or conversation as it comes."""
        request = self._request(
            self._reader.read(prompt, images), replace(params or SamplingParams(), **options)
        )
        self._loop.submit(request)
        return Stream(self._loop, request)

    def encode_images(self, images: Sequence[object]) -> Tensor:
        """(n, image_rows, hidden): the rows that stand for each picture (or video.Video) in the language
        model's input."""
        pixels = self._reader.pixels(images)
        if not pixels:
            shape = (0, self.config.image_rows, self.config.llama.hidden_size)
            return torch.empty(shape, dtype=self.model.dtype, device=self.model.device)
        # A clone made here is an ordinary tensor, free to take part in training.
        return self._runner.encode_images(pixels).clone()

    def score(self, prompt: Prompt, images: Sequence[object] | None, continuation: str) -> list[float]:
        """Natural log-prob of each token of the continuation after the prompt.

        The continuation is tokenized by itself and literally, as answers are in training.
        """
        prepared = self._reader.read(prompt, images)
        tail = self.tokenizer.encode(continuation, literal=True)
        if not tail:
            return []
        params = SamplingParams(max_tokens=len(tail))
        request = self._request(prepared, params, continuation=tail)
        return _raise_error(self._complete([request])[0]).logprobs

    def _request(
        self, prepared: PreparedPrompt, params: SamplingParams, continuation: Sequence[int] = ()
    ) -> Request:
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
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        max_tokens = left if params.max_tokens is None else params.max_tokens
        return Request(
            prompt_ids=[*prepared.ids, *continuation],
            params=params,
            max_tokens=max_tokens,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            bos_id=bos,
            text=TextStream(StreamDecoder(self.tokenizer), params.stop_strings),
            pixels=prepared.pixels,
            score_from=length if continuation else None,
            beams=BeamSearch(params, bos, eos, max_tokens) if params.beams > 1 else None,
        )

    def _complete(self, requests: list[Request]) -> list[Output]:
        for request in requests:
            self._loop.submit(request)
        try:
            while not all(request.finished for request in requests):
                self._loop.step()
        finally:
            for request in requests:
                request.cancelled = not request.finished
            self._loop.reap()
        return [output(request) for request in requests]


def _raise_error(result: Output) -> Output:
    if result.finish_reason == "error":
        raise OwlError(result.error)
    return result
