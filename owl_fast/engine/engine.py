"""The facade: load a model, ask it, stream from it.

A prompt is a raw text with its roles and "<image>" marks written out, or a list of messages (prompts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.checkpoints import save_model
from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.config import OwlConfig
from owl_fast.conversation import Conversation
from owl_fast.engine.adapters import Adapters
from owl_fast.engine.async_stream import AsyncStream, Pump
from owl_fast.engine.dialogue import Chat
from owl_fast.engine.drawing import DeviceSampler
from owl_fast.engine.graphs import Recorder, cpu_capture
from owl_fast.engine.inputs import InputReader, Prompt, PromptItem, is_messages
from owl_fast.engine.kv_cache import BlockAllocator, KVCache, blocks_for
from owl_fast.engine.loop import Loop
from owl_fast.engine.making import RequestMaker, chosen
from owl_fast.engine.opening import open_model
from owl_fast.engine.outputs import Output
from owl_fast.engine.plan import STEP_TOKENS
from owl_fast.engine.reports import Memory, Stats, activation_bytes
from owl_fast.engine.runner import Runner
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.scheduler import Scheduler
from owl_fast.engine.stream import Stream
from owl_fast.errors import ParameterError, PromptError
from owl_fast.fetch import Fetcher
from owl_fast.images import ImageProcessor
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer


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
        allow_urls: Collection[str] = (),
        source: WeightFolder | None = None,
    ) -> None:
        """max_context: positions of prompt and answer, at most what the model was made for; max_batch: rows
        generated at once (a beam is a row). The cache takes max_context * max_batch positions. source: where
        the weights were read from, if from anywhere."""
        if not all(isinstance(limit, int) and limit >= 1 for limit in (max_context, max_batch)):
            raise ParameterError(
                f"max_context {max_context!r:.40}, max_batch {max_batch!r:.40}; wanted integers of at least 1"
            )
        llama = model.config.llama
        self.config: OwlConfig = model.config
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.max_context = min(max_context, llama.max_position_embeddings)
        self.max_batch = max_batch
        self._source = source
        self._weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        self._adapters = Adapters(model, source)
        self._reader = InputReader(
            tokenizer, processor, model.config.image_rows, Fetcher(allow_urls), model.config.video
        )
        self._make = RequestMaker(self._reader, self._adapters, self.max_context, max_batch)
        cache = KVCache(llama, max_batch * blocks_for(self.max_context), model.dtype, model.device)
        self._runner = Runner(model, cache, self._adapters)
        scheduler = Scheduler(BlockAllocator(cache.num_blocks), max_batch, max(step_tokens, max_batch))
        sampler = DeviceSampler(max_batch, self.max_context, tokenizer.eos_id, model.device)
        on_device = ops.uses_kernels(model.query_tokens)
        self._loop = Loop(scheduler, self._runner, tokenizer.eos_id, sampler if on_device else None)
        if model.device.type == "cuda":
            self._runner.record(Recorder(self._loop.between_steps), max_batch, self.max_context)
        elif ops.backend(model.device) == "libowl_cpu":
            recorder = Recorder(self._loop.between_steps, cpu_capture, ops.repeats)
            # A CPU multiplies rows in excess like others, and a recording takes it next to no memory.
            self._runner.record(recorder, max_batch, self.max_context, range(1, max_batch))
        self._pump = Pump(self._loop)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quant: str | None = None,
        quant_vision: str | None = None,
        adapter: str | Path | None = None,
        tokenizer: str | Path | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        vision_heads: int | None = None,
        abstractor_heads: int | None = None,
        lora_alpha: float | None = None,
        max_context: int = 2048,
        max_batch: int = 8,
        allow_urls: Collection[str] = (),
        progress: Callable[[int, int], None] | None = None,
        allow_nonfinite: bool = False,
    ) -> Engine:
        """Load a model folder or weight file (docs/checkpoints.md), or its id on the hub; without a path the
        bundled owl-nano.

        device: "auto" takes CUDA where there is one. dtype: fp32, bf16, fp16 or a torch dtype; "auto" is
        bf16 on CUDA (fp16 on GPUs without it), on a CPU fp32, or bf16 from a billion weights on.
        quant: "int8" or "int4" quantizes the language model's linear weights while they are read, "none"
        leaves them, "auto" takes the largest precision that fits the device; by default they are as in the
        files. quant_vision: "int8" does it to the vision tower (docs/quantization.md).
        adapter: a folder with a LoRA adapter, used by every request that names no other. tokenizer, config,
        vision_heads, abstractor_heads, lora_alpha: what the files do not tell, such as a .pth of the first
        release (see open_source). allow_urls: hosts from which pictures may be fetched (fetch.py), none
        unless said. progress(bytes done, bytes in all) is called while loading. allow_nonfinite: load weights
        that are NaN or infinite instead of refusing them.
        """
        opened = open_model(
            path,
            device=device,
            dtype=dtype,
            quant=quant,
            quant_vision=quant_vision,
            max_context=max_context,
            max_batch=max_batch,
            adapter=adapter,
            progress=progress,
            allow_nonfinite=allow_nonfinite,
            tokenizer=tokenizer,
            config=config,
            vision_heads=vision_heads,
            abstractor_heads=abstractor_heads,
            lora_alpha=lora_alpha,
        )
        engine = cls(
            opened.model,
            opened.tokenizer,
            opened.processor,
            max_context=max_context,
            max_batch=max_batch,
            allow_urls=allow_urls,
            source=opened.weights,
        )
        engine._adapters.load_default(opened.adapter)
        return engine

    @overload
    def generate(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompt: Sequence[PromptItem],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **options: Any,
    ) -> Output | list[Output]: ...

    def generate(
        self,
        prompt: str | Sequence[PromptItem],
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Answer one raw prompt or conversation, or a list of requests (in order, equal to one at a time).

        adapter: a name given to load_adapter, or "base" for the model without. options are fields of
        SamplingParams and override those of params. One request that fails raises OwlError; of a list each
        failed one has finish_reason "error" and an error text.
        """
        if isinstance(prompt, str) or is_messages(prompt):
            request = self._make.read(cast(Prompt, prompt), params, images, adapter, options)
            return self._loop.answer(request)
        return self._loop.complete(self._make.read_list(prompt, params, images, adapter, options))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Stream:
        """The answer to one raw prompt or conversation as it comes; arguments as for generate."""
        return Stream(self._loop, self._make.read(prompt, params, images, adapter, options))

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> AsyncStream:
        """The same for asyncio, to be read with `async for`; nothing here blocks the event loop."""
        return AsyncStream(self._pump, lambda: self._make.read(prompt, params, images, adapter, options))

    def chat(
        self,
        system: str | None = None,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        **options: Any,
    ) -> Chat:
        """A conversation that remembers itself; system replaces its header, the rest as for generate."""
        return Chat(self._loop, self._make, Conversation(system=system), chosen(params, options), adapter)

    def encode_images(self, images: Sequence[object], *, adapter: str | None = None) -> Tensor:
        """(n, image_rows, hidden): the rows that stand for each picture (or video.Video) in the language
        model's input."""
        pixels, chosen = self._reader.pixels(images), self._adapters.find(adapter)
        with self._loop.between_steps():
            self._runner.use_adapter(chosen)
            # A clone made here is an ordinary tensor, free to take part in training.
            return self._runner.encode_images(pixels).clone()

    def score(
        self,
        prompt: Prompt,
        images: Sequence[object] | None,
        continuation: str,
        *,
        adapter: str | None = None,
    ) -> list[float]:
        """Natural log-prob of each token of the continuation after the prompt.

        The continuation is tokenized by itself and literally, as answers are in training.
        """
        if not isinstance(continuation, str):
            raise PromptError(f"the continuation is a {type(continuation).__name__}; wanted a text")
        prepared = self._reader.read(prompt, images, adapter)
        tail = self.tokenizer.encode(continuation, literal=True)
        if not tail:
            return []
        request = self._make(prepared, SamplingParams(max_tokens=len(tail)), tail)
        return self._loop.answer(request).logprobs

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return self._adapters.names

    def load_adapter(self, name: str, folder: str | Path, *, check_base: bool = True) -> None:
        """Read a LoRA adapter from a folder or the hub, to be asked for by its name.

        Requests of one adapter run together, those of different ones in turn. CheckpointError when the folder
        does not fit the model, or, with check_base, says that it was trained on another one.
        """
        self._adapters.load(name, folder, check_base)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that are under way keep it until they end."""
        self._adapters.unload(name)
        with self._loop.between_steps():
            if not self._loop.scheduler.running:
                self._runner.release_adapter()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        adapter: str | None = None,
        format: str = "safetensors",
        other_precision: bool = False,
    ) -> None:
        """Write a model folder, new or empty, that from_pretrained reads; answers wait meanwhile.

        Quantized weights are written as they are held. The adapter (as for generate) is merged into the
        weights: summed in float32, then rounded to the model's dtype, quantized weights being made dense for
        it. UnsupportedError if it was trained on weights held otherwise, which other_precision allows.
        format: "safetensors" or "bin", the latter not for quantized weights.
        """
        chosen = self._adapters.find(adapter)
        if chosen is not None and not other_precision:
            self._adapters.check_precision(chosen)
        with self._loop.between_steps():
            self._runner.use_adapter(None)
            save_model(
                self.model,
                folder,
                format=format,
                side_files=None if self._source is None else self._source.path,
                tokenizer=self.tokenizer.model_bytes,
                preprocessor=self.processor.to_dict(),
                change=None if chosen is None else chosen.merged,
            )

    def memory(self) -> Memory:
        """What the engine takes on its device."""
        return Memory(
            weights=self._weights,
            adapters=self._adapters.nbytes,
            cache=self._runner.cache.nbytes,
            activations=activation_bytes(
                self.config,
                self.model.dtype,
                self._loop.scheduler.step_tokens,
                self.max_batch,
                self.max_context,
                ops.backend(self.model.device),
            ),
        )

    def stats(self) -> Stats:
        """What the engine has done so far."""
        return self._loop.stats()
