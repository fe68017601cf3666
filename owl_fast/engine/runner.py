"""Carries out a step: packs the planned spans into one batch and runs the model on it.

N rows of all spans, B spans, M rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import accumulate

import torch
from torch import Tensor

from owl_fast.engine.adapters import Adapters
from owl_fast.engine.graphs import BUCKETS, DecodeGraphs, PictureGraph, Recorder
from owl_fast.engine.kv_cache import KVCache
from owl_fast.engine.scheduler import Span, StepPlan
from owl_fast.lora import Adapter
from owl_fast.models.batch import PackedBatch, PagedCache
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID


class Runner:
    """The model and its cache; knows nothing of requests beyond the spans it is given."""

    def __init__(self, model: Owl, cache: KVCache, adapters: Adapters) -> None:
        self.model = model
        self.cache = cache
        self.adapters = adapters
        self._recorder: Recorder | None = None
        self._picture: PictureGraph | None = None

    def record(self, recorder: Recorder, max_batch: int, max_context: int, sizes: Seq[int] = BUCKETS) -> None:
        """From now on steps of single rows, in buckets of these sizes, and pictures on a GPU are recorded and
        replayed."""
        model, device = self.model, self.model.device
        self._recorder = recorder
        self._decode = DecodeGraphs(
            lambda batch: model.logits(model(batch)),
            self.cache,
            max_batch,
            max_context,
            device,
            recorder,
            sizes,
        )
        self._picture = PictureGraph(model.encode_images, recorder) if device.type == "cuda" else None

    def use_adapter(self, adapter: Adapter | None) -> None:
        if self.adapters.use(adapter) and self._recorder is not None:
            self._recorder.forget()

    def release_adapter(self) -> None:
        """Take an unloaded adapter off the model, so that its memory is free."""
        if self.adapters.is_unloaded:
            self.use_adapter(None)

    @torch.inference_mode()
    def encode_images(self, pixels: Seq[Tensor]) -> Tensor:
        """(3, S, S) of each picture, (T, 3, S, S) of each video -> (n, image_rows, hidden). One at a time:
        a picture's rows do not depend on the pictures beside it, and memory stays flat."""
        rows = [self._encode(picture) for picture in pixels]
        config = self.model.config
        none = (0, config.image_rows, config.llama.hidden_size)
        return torch.cat(rows) if rows else self.model.query_tokens.new_empty(none)

    def _encode(self, pixels: Tensor) -> Tensor:
        if pixels.dim() == 3 and self._picture is not None and self._records():
            self.model.abstractor.encoder.renew_folded()
            return self._picture.run(pixels[None], self.model.query_tokens)
        if pixels.dim() == 3:
            return self.model.encode_images(pixels[None])
        return self.model.encode_videos(pixels[None])

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits (M, V) in the model's dtype: of each span in order the rows from its logits_from on."""
        self.cache.copy_blocks(plan.copies)
        if self._records() and all(_is_decode(span) for span in plan.spans):
            return self._decode.run(plan.spans)
        hidden = self.model(self._batch(plan.spans))
        starts = accumulate((span.end - span.start for span in plan.spans), initial=0)
        rows = [
            row
            for offset, span in zip(starts, plan.spans, strict=False)
            for row in range(offset + span.logits_from - span.start, offset + span.end - span.start)
        ]
        logits: Tensor = self.model.logits(
            hidden[torch.tensor(rows, dtype=torch.int64, device=hidden.device)]
        )
        return logits

    def _records(self) -> bool:
        return self._recorder is not None and self._recorder.takes(self.model.query_tokens)

    def _batch(self, spans: Seq[Span]) -> PackedBatch:
        pictures = [rows for span in spans if (rows := _picture_rows(span)) is not None]
        batch = PackedBatch.from_sequences(
            [span.sequence.token_ids[span.start : span.end] for span in spans],
            torch.cat(pictures) if pictures else None,
            starts=[span.start for span in spans],
            device=self.model.device,
        )
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
    ids, visual = span.sequence.token_ids, span.request.visual
    inside = ids[span.start : span.end].count(IMAGE_ID)
    if visual is None or inside == 0:
        return None
    before = ids[: span.start].count(IMAGE_ID)
    return visual[before : before + inside]
