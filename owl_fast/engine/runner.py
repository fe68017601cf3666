"""Carries out a step: packs the planned spans into one batch and runs the model on it.

N rows of all spans, B spans, M rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.engine.adapters import Adapters
from owl_fast.engine.graphs import BUCKETS, DecodeGraphs, PictureGraph, Recorder
from owl_fast.engine.kv_cache import KVCache
from owl_fast.engine.onnx_vision import onnx_tower
from owl_fast.engine.pictures import PictureCache
from owl_fast.engine.scheduler import Span, StepPlan
from owl_fast.lora import Adapter
from owl_fast.models.batch import PackedBatch, PagedCache
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID


class Runner:
    """The model and its cache; knows nothing of requests beyond the spans it is given."""

    def __init__(
        self, model: Owl, cache: KVCache, adapters: Adapters, pictures: PictureCache, exact: bool = False
    ) -> None:
        """exact: a row's bits depend on no other row, on a GPU too (backends.exactly)."""
        self.model = model
        self.cache = cache
        self.adapters = adapters
        self.pictures = pictures
        self._exact = exact
        self._recorder: Recorder | None = None
        self._picture: PictureGraph | None = None

    def record(self, recorder: Recorder, max_batch: int, max_context: int, sizes: Seq[int] = BUCKETS) -> None:
        """From now on steps of single rows, in buckets of these sizes, and pictures on a GPU are recorded and
        replayed."""
        model, device = self.model, self.model.device
        self._recorder = recorder
        self._decode = DecodeGraphs(
            lambda batch: model.logits(model(batch), batch.owner),
            self.cache,
            max_batch,
            max_context,
            device,
            recorder,
            sizes,
        )
        records = device.type == "cuda" and onnx_tower(model) is None  # ONNX Runtime has its own stream
        self._picture = PictureGraph(model.encode_images, recorder) if records else None

    def hold_adapters(self, used: Iterable[Adapter | None]) -> None:
        """Between two steps: have ready what is loaded and what requests use, and nothing else."""
        if self.adapters.hold(used) and self._recorder is not None:
            self._recorder.forget()

    def encode(self, span: Span) -> tuple[int, int]:
        """Give the pictures with rows in the span these rows. Returns how many had none yet, and how many of
        these the picture cache had."""
        request, encoded = span.request, 0
        pictures, *_ = request.pictures_in(span.start, span.end)
        wanted = [picture for picture in pictures if picture.rows is None]
        if not wanted:
            return 0, 0
        with self._as_it_was():
            for picture in wanted:
                key = request.root + picture.digest
                picture.rows = self.pictures.get(key)
                if picture.rows is None:
                    encoded += 1
                    picture.rows = self._encode_with(request.adapter, picture.pixels)[0]
                    if torch.isfinite(picture.rows).all():
                        self.pictures.put(key, picture.rows)
        return len(wanted), len(wanted) - encoded

    def encode_images(self, pixels: Seq[Tensor], adapter: Adapter | None = None) -> Tensor:
        """(3, S, S) of each picture, (T, 3, S, S) of each video -> (n, image_rows, hidden). One at a time:
        a picture's rows do not depend on the pictures beside it, and memory stays flat."""
        with self._as_it_was():
            rows = [self._encode_with(adapter, picture) for picture in pixels]
        config = self.model.config
        none = (0, config.image_rows, config.llama.hidden_size)
        return torch.cat(rows) if rows else self.model.query_tokens.new_empty(none)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Afterwards nothing of an adapter stands outside the language model: recordings are made without."""
        try:
            yield
        finally:
            self.adapters.outside.use(None)

    def _encode_with(self, adapter: Adapter | None, pixels: Tensor) -> Tensor:
        outside = self.adapters.outside
        outside.use(adapter)
        with torch.inference_mode():
            return self._encode(pixels, records=not outside.updates and self._records())

    def _encode(self, pixels: Tensor, records: bool) -> Tensor:
        if pixels.dim() == 3 and self._picture is not None and records:
            self.model.abstractor.encoder.renew_folded()
            return self._picture.run(pixels[None], self.model.query_tokens)
        if pixels.dim() == 3:
            return self.model.encode_images(pixels[None])
        return self.model.encode_videos(pixels[None])

    def run(self, plan: StepPlan) -> Tensor:
        """Logits (M, V) in the model's dtype: of each span in order the rows from its logits_from on."""
        with torch.inference_mode(), ops.exactly(self._exact):
            return self._run(plan)

    def _run(self, plan: StepPlan) -> Tensor:
        self.cache.copy_blocks(plan.copies)
        first = plan.spans[0].request.adapter
        self.adapters.inside.use(first if first is not None and first.runs_alone else None)
        owners = self._owners(plan.spans)
        if self._records() and all(_is_decode(span) for span in plan.spans):
            return self._decode.run(plan.spans, owners)
        batch = self._batch(plan.spans, owners)
        hidden = self.model(batch)
        starts = accumulate((span.end - span.start for span in plan.spans), initial=0)
        rows = [
            row
            for offset, span in zip(starts, plan.spans, strict=False)
            for row in range(offset + span.logits_from - span.start, offset + span.end - span.start)
        ]
        wanted = torch.tensor(rows, dtype=torch.int64, device=hidden.device)
        owner = None if batch.owner is None else batch.owner[wanted]
        logits: Tensor = self.model.logits(hidden[wanted], owner)
        return logits

    def _owners(self, spans: Seq[Span]) -> list[int] | None:
        """Whose updates the rows of each span take (Linear.stack); None when all take nobody's."""
        places = [self.adapters.updates.place(span.request.adapter) for span in spans]
        return places if max(places) >= 0 else None

    def _records(self) -> bool:
        return self._recorder is not None and self._recorder.takes(self.model.query_tokens)

    def _batch(self, spans: Seq[Span], owners: Seq[int] | None) -> PackedBatch:
        pictures = [rows for span in spans if (rows := _picture_rows(span)) is not None]
        batch = PackedBatch.from_sequences(
            [span.token_ids for span in spans],
            torch.cat(pictures) if pictures else None,
            starts=[span.start for span in spans],
            device=self.model.device,
        )
        if owners is not None:
            told = zip(owners, spans, strict=True)
            whose = [owner for owner, span in told for _ in range(span.start, span.end)]
            batch.owner = torch.tensor(whose, dtype=torch.int32, device=self.model.device)
        batch.cache = self._paged(spans)
        return batch

    def _paged(self, spans: Seq[Span]) -> PagedCache:
        size, device = self.cache.block_size, self.model.device
        slots = [
            span.sequence.table[position // size] * size + position % size
            for span in spans
            for position in range(span.start, span.end)
        ]
        widest = max(len(span.sequence.table) for span in spans)
        tables = [span.sequence.table + [0] * (widest - len(span.sequence.table)) for span in spans]
        lengths = tuple(span.end for span in spans)
        return PagedCache(
            layers=self.cache.layers,
            slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
            block_tables=torch.tensor(tables, dtype=torch.int32, device=device),
            context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
            lengths=lengths,
        )


def _is_decode(span: Span) -> bool:
    """One row, a token, whose logits are wanted."""
    one = span.end - span.start == 1 and span.logits_from == span.start
    return one and span.sequence.token_ids[span.start] != IMAGE_ID


def _picture_rows(span: Span) -> Tensor | None:
    """The rows of the request's pictures that fall into the span: (rows, hidden), or None."""
    pictures, skipped, inside = span.request.pictures_in(span.start, span.end)
    if not inside:
        return None
    shown = [picture.rows for picture in pictures if picture.rows is not None]
    return torch.cat(shown)[skipped : skipped + inside]
