"""The facade: load a model, ask it, stream from it.

A prompt is a raw text with its roles and "<image>" marks written out, or a list of messages (prompts.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.checkpoints import save_model
from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.config import OwlConfig
from owl_fast.conversation import Conversation
from owl_fast.engine.adapters import Adapters
from owl_fast.engine.async_stream import AsyncStream, Pump, Readers
from owl_fast.engine.blocks import BlockAllocator
from owl_fast.engine.device_sampler import DeviceSampler
from owl_fast.engine.dialogue import Chat
from owl_fast.engine.graphs import Recorder, cpu_capture
from owl_fast.engine.inputs import InputReader, PreparedPrompt, Prompt, PromptItem, is_one
from owl_fast.engine.kv_cache import KVCache, cache_dtype
from owl_fast.engine.loop import Loop
from owl_fast.engine.onnx_vision import onnx_tower
from owl_fast.engine.opening import open_model
from owl_fast.engine.outputs import Output, joined
from owl_fast.engine.pictures import PICTURE_CACHE_MB, PictureCache
from owl_fast.engine.placement import check_exact
from owl_fast.engine.plan import STEP_TOKENS, Setup
from owl_fast.engine.reports import Memory, Stats
from owl_fast.engine.request import Request
from owl_fast.engine.request_maker import RequestMaker, chosen
from owl_fast.engine.runner import Runner
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.scheduler import Scheduler
from owl_fast.engine.stream import Stream
from owl_fast.errors import PromptError, UnsupportedError
from owl_fast.fetch import Fetcher
from owl_fast.images import ImageProcessor
from owl_fast.machine import cpu_count
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID
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
        kv_cache: str = "auto",
        cache_positions: int | None = None,
        allow_urls: Collection[str] = (),
        prefix_cache: bool = True,
        picture_cache_mb: int = PICTURE_CACHE_MB,
        speculation: int = 0,
        exact: bool = False,
        source: WeightFolder | None = None,
    ) -> None:
        """max_context: positions of prompt and answer, at most what the model was made for; max_batch: rows
        generated at once (a beam is a row). The cache has cache_positions, by default max_context of them for
        every row (with fewer, answers wait for each other when all are long), in the model's dtype or as
        kv_cache="int8"; with prefix_cache it keeps what it holds for prompts that begin alike.
        picture_cache_mb: MiB for the rows of pictures seen before. speculation: steps of fewer rows than this
        are filled up with guesses of how answers go on, which may make them faster and changes nothing else;
        0 guesses nothing. exact: on a GPU an answer's bits depend on nothing that runs beside it, at a price
        (docs/engine.md); on a CPU with libowl_cpu they never do. source: where the weights were read from, if
        from anywhere."""
        self._setup = setup = Setup(
            model.device,
            model.dtype,
            max_context,
            max_batch,
            kv_cache,
            cache_positions,
            step_tokens,
            picture_cache_mb,
            speculation,
            exact,
        )
        if exact:
            check_exact(model)
        config, tower, blocks = model.config, onnx_tower(model), setup.blocks(model.config)
        self.config: OwlConfig = config
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.max_context, self.max_batch = setup.context(config), max_batch
        self._source = source
        self._weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        self._weights += 0 if tower is None else tower.file.nbytes
        self._adapters = Adapters(model, source)
        self._reader = InputReader(
            tokenizer, processor, config.image_rows, Fetcher(allow_urls), config.video, tower is not None
        )
        kept_as = cache_dtype(kv_cache, model.dtype)
        seen_by = "" if tower is None else tower.file.path  # other last bits than the model's own tower
        self._make = RequestMaker(
            self._reader,
            self._adapters,
            self.max_context,
            max_batch,
            blocks,
            held=f"{source.path if source else id(model)} {kept_as} {seen_by}",
            vocabulary=config.llama.vocab_size,
            guesses=speculation > 0,
        )
        cache = KVCache(config.llama, blocks, kept_as, model.device)
        self._runner = Runner(model, cache, self._adapters, PictureCache(picture_cache_mb * 2**20), exact)
        self._loop = self._step_loop(BlockAllocator(blocks, keep=prefix_cache))
        self._record_steps()
        self._pump, self._readers = Pump(self._loop), Readers(max(cpu_count(), 2))

    def _step_loop(self, allocator: BlockAllocator) -> Loop:
        setup, eos = self._setup, self.tokenizer.eos_id
        rows = max(setup.step_tokens, self.max_batch)
        scheduler = Scheduler(allocator, self.max_batch, rows, setup.speculation)
        # Guesses are checked on the host: for the same bits everything is drawn there.
        on_device = ops.uses_kernels(self.model.query_tokens) and not (setup.exact and setup.speculation)
        sampler = DeviceSampler(self.max_batch, self.max_context, eos, setup.device) if on_device else None
        return Loop(scheduler, self._runner, eos, sampler)

    def _record_steps(self) -> None:
        """Where what a step launches can be recorded and replayed (graphs.py)."""
        device, between = self._setup.device, self._loop.between_steps
        if device.type == "cuda":
            self._runner.record(Recorder(between), self.max_batch, self.max_context)
        elif ops.backend(device) == "libowl_cpu":
            recorder = Recorder(between, cpu_capture, ops.repeats)
            # A CPU multiplies rows in excess like others, and a recording takes it next to no memory.
            self._runner.record(recorder, self.max_batch, self.max_context, range(1, self.max_batch))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quant: str | None = None,
        quant_vision: str | None = None,
        vision: str | None = None,
        adapter: str | Path | None = None,
        tokenizer: str | Path | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        vision_heads: int | None = None,
        abstractor_heads: int | None = None,
        lora_alpha: float | None = None,
        max_context: int = 2048,
        max_batch: int = 8,
        kv_cache: str = "auto",
        cache_positions: int | None = None,
        allow_urls: Collection[str] = (),
        prefix_cache: bool = True,
        picture_cache_mb: int = PICTURE_CACHE_MB,
        speculation: int = 0,
        exact: bool = False,
        progress: Callable[[int, int], None] | None = None,
        allow_nonfinite: bool = False,
    ) -> Engine:
        """Load a model folder or weight file (docs/checkpoints.md), or its id on the hub; without a path the
        bundled owl-nano.

        device: "auto" takes CUDA where there is one. dtype: fp32, bf16, fp16 or a torch dtype; "auto" is
        bf16 on CUDA (fp16 on GPUs without it), on a CPU fp32, or bf16 from a billion weights on.
        quant: "int8" or "int4" quantizes the language model's linear weights while they are read, "none"
        leaves them, "auto" takes the largest precision that fits the device; by default they are as in the
        files. quant_vision: "int8" does it to the vision tower; vision: "onnx:DIR" sends pictures through
        the ONNX file that export.onnx wrote of this model (docs/exports.md). kv_cache: "int8" quantizes keys
        and values, of which twice as many fit (docs/quantization.md). max_context to exact: as Engine takes
        them.
        adapter: a folder with a LoRA adapter, used by every request that names no other. tokenizer, config,
        vision_heads, abstractor_heads, lora_alpha: what the files do not tell, such as a .pth of the first
        release (see open_source). allow_urls: hosts from which pictures may be fetched (fetch.py), none
        unless said. progress(bytes done, bytes in all) is called while loading. allow_nonfinite: load weights
        that are NaN or infinite instead of refusing them.
        """
        sizes: dict[str, Any] = {
            "max_context": max_context,
            "max_batch": max_batch,
            "kv_cache": kv_cache,
            "cache_positions": cache_positions,
            "picture_cache_mb": picture_cache_mb,
            "speculation": speculation,
            "exact": exact,
        }
        opened = open_model(
            path,
            device=device,
            dtype=dtype,
            quant=quant,
            quant_vision=quant_vision,
            vision=vision,
            sizes=sizes,
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
            allow_urls=allow_urls,
            prefix_cache=prefix_cache,
            source=opened.weights,
            **sizes,
        )
        engine._adapters.load_default(opened.adapter)
        engine._loop.reap()
        return engine

    @overload
    def generate(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        client: str = "",
        **options: Any,
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompt: Sequence[PromptItem],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        client: str = "",
        **options: Any,
    ) -> Output | list[Output]: ...

    def generate(
        self,
        prompt: str | Sequence[PromptItem],
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        client: str = "",
        **options: Any,
    ) -> Output | list[Output]:
        """Answer one raw prompt or conversation, or a list of requests (in order, equal to one at a time).

        adapter: a name given to load_adapter, or "base" for the model without. client: whose it is; clients
        are served alike, however much each of them asks (docs/engine.md). options are fields of
        SamplingParams and override those of params. With n above 1 an Output is the first answer and holds
        the others. One request that fails raises OwlError; of a list each failed one has finish_reason
        "error" and an error text.
        """
        if is_one(prompt):
            return self._loop.answer(self._make.read(prompt, params, images, adapter, client, options))
        groups = self._make.read_list(prompt, params, images, adapter, client, options)
        answers = iter(self._loop.complete(list(chain.from_iterable(groups))))
        return [joined(list(islice(answers, len(group)))) for group in groups]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        client: str = "",
        **options: Any,
    ) -> Stream:
        """The answer to one raw prompt or conversation as it comes; arguments as for generate. With n above 1
        the events of several answers take turns, told apart by Event.index."""
        return Stream(self._loop, self._make.read(prompt, params, images, adapter, client, options))

    def astream(
        self,
        prompt: str | Sequence[PromptItem],
        params: SamplingParams | None = None,
        *,
        images: Sequence[object] | None = None,
        adapter: str | None = None,
        client: str = "",
        **options: Any,
    ) -> AsyncStream:
        """The same for asyncio, to be read with `async for`; nothing here blocks the event loop. Answers to a
        list of requests, as generate takes it, are counted through."""
        return AsyncStream(
            self._pump,
            self._readers,
            lambda: self._make.read_all(prompt, params, images, adapter, client, options),
        )

    def chat(
        self,
        system: str | None = None,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        client: str = "",
        **options: Any,
    ) -> Chat:
        """A conversation that remembers itself; system replaces its header, the rest as for generate."""
        conversation = Conversation(system=system)
        return Chat(self._loop, self._make, conversation, chosen(params, options), adapter, client)

    def encode_images(self, images: Sequence[object], *, adapter: str | None = None) -> Tensor:
        """(n, image_rows, hidden): the rows that stand for each picture (or video.Video) in the language
        model's input."""
        pixels, chosen = self._reader.pixels(images), self._adapters.find(adapter)
        with self._loop.between_steps():
            # A clone made here is an ordinary tensor, free to take part in training.
            return self._runner.encode_images(pixels, chosen).clone()

    def score(
        self,
        prompt: Prompt,
        images: Sequence[object] | None,
        continuation: str,
        *,
        adapter: str | None = None,
        client: str = "",
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
        requests = self._make(prepared, SamplingParams(max_tokens=len(tail)), tail, client)
        return self._loop.answer(requests).logprobs

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return self._adapters.names

    def load_adapter(self, name: str, folder: str | Path, *, check_base: bool = True) -> None:
        """Read a LoRA adapter from a folder or the hub, to be asked for by its name.

        Requests of different adapters run together and do not change each other's answers, but one that
        replaces tensors of the language model itself runs with none but its own. CheckpointError when the
        folder does not fit the model, or, with check_base, says that it was trained on another one.
        """
        self._adapters.check_name(name)
        adapter = self._adapters.read(folder, check_base)
        with self._loop.between_steps():  # nobody's step meets one that cannot be held
            self._adapters.add(name, adapter)
            try:
                self._loop.reap()
            except BaseException:
                self._adapters.unload(name)
                raise

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that are under way keep it until they end."""
        self._adapters.unload(name)
        self._loop.reap()

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
        if (tower := onnx_tower(self.model)) is not None:
            raise UnsupportedError(f"parts of the model lie in {tower.file.path}; load it without vision=")
        chosen = self._adapters.find(adapter)
        if chosen is not None and not other_precision:
            self._adapters.check_precision(chosen)
        with self._loop.between_steps():
            self._adapters.inside.use(None)
            save_model(
                self.model,
                folder,
                format=format,
                side_files=None if self._source is None else self._source.path,
                tokenizer=self.tokenizer.model_bytes,
                preprocessor=self.processor.to_dict(),
                change=None if chosen is None else chosen.merged,
            )

    def warm_up(self, step_seconds: float) -> int:
        """Do now what the first requests would wait for (kernels are compiled, steps recorded), and find out
        how many rows a step may have so as to take about so many seconds at most; longer prompts are cut into
        such parts from now on. Returns that number."""
        self._rehearse()
        most = max(min(self._loop.scheduler.step_tokens, self.max_context - 1), 1)
        sizes = [size for size in (32, 256) if size < most] + [most]
        for rows, larger in zip(sizes, [*sizes[1:], most], strict=True):
            self._seconds_of(rows)
            seconds = self._seconds_of(rows)  # nothing is done for the first time any more
            if seconds * larger > step_seconds * rows:
                self._loop.scheduler.shorten_steps(int(rows * step_seconds / seconds))
                break
        return self._loop.scheduler.step_tokens

    def _rehearse(self) -> None:
        """A picture, every number of rows at once, and what is drawn in other ways than the likeliest."""
        rows, side = self.config.image_rows, self.config.vision.image_size
        params = SamplingParams(temperature=1.0, top_p=0.9, ignore_eos=True, seed=0)
        ids, pixels = [self.tokenizer.bos_id, *[IMAGE_ID] * rows], [torch.zeros(3, side, side)]
        if len(ids) >= self.max_context:
            ids, pixels = ids[:1], []
        requests: list[Request] = []
        for row in range(self.max_batch):  # one after the other ends
            longest = min(2 + row, self.max_context - len(ids))
            lasting = replace(params, max_tokens=longest)
            requests += self._make(PreparedPrompt(ids, pixels), lasting)
        self._loop.complete(requests)

    def _seconds_of(self, rows: int) -> float:
        """What a prompt of so many positions takes, of which the cache knows nothing."""
        vocabulary = self.tokenizer.vocab_size
        ids = [self.tokenizer.bos_id, *(secrets.randbelow(vocabulary) for _ in range(rows - 1))]
        requests = self._make(PreparedPrompt(ids, []), SamplingParams(max_tokens=1))
        return self._loop.answer(requests).timings.prompt_ms / 1e3

    def memory(self) -> Memory:
        """What the engine takes on its device."""
        return Memory(
            weights=self._weights,
            adapters=self._adapters.nbytes,
            cache=self._runner.cache.nbytes,
            pictures=self._setup.picture_cache_mb * 2**20,
            activations=self._setup.activations(self.config),
        )

    def stats(self) -> Stats:
        """What the engine has done so far."""
        return self._loop.stats()
