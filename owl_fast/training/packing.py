"""Samples -> token ids with labels -> packed batches; nothing is ever padded.

N rows of all sequences, M rows whose next token is labelled, n pictures, S side in pixels, P patches,
E width of the vision tower, C of the language model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.errors import DataError, ImageError, Reason
from owl_fast.models.batch import PackedBatch
from owl_fast.prompts import IMAGE_ID, caption_pieces, encode_training, training_pieces
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.sample import Caption, Sample

IGNORED = -100
WORTH_SHARING = 16  # tokens; a shorter prefix costs more to lay out than to compute


@dataclass(frozen=True)
class EncodedSample:
    """Token ids and labels of one sample, both of its own length.

    labels[i] is token_ids[i] where that token is to be predicted (from row i - 1) and IGNORED elsewhere; a
    negative id marks a picture row. visual: one tensor per picture in order, pixels (3, S, S) or, when the
    vision tower does not train, its cached output (1 + P, E).
    """

    token_ids: Sequence[int]
    labels: Sequence[int]
    visual: Sequence[Tensor] = ()
    record: str = "sample"


@dataclass
class TrainingBatch:
    """Packed rows and what is to be predicted from them."""

    packed: PackedBatch  # its visual_embeds are made by the forward pass
    rows: Tensor  # (M,) int64: rows whose next token is labelled
    targets: Tensor  # (M,) int64: those tokens
    pixels: Tensor | None  # (n, 3, S, S)
    features: Tensor | None  # (n, 1 + P, E): the vision tower's output, in place of pixels
    records: tuple[str, ...]
    from_pixels: Tensor | None = None  # (n,) bool, where some pictures came as pixels and some as features

    @property
    def labelled(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> TrainingBatch:
        p = self.packed
        packed = replace(
            p,
            token_ids=p.token_ids.to(device),
            positions=p.positions.to(device),
            cu_seqlens=p.cu_seqlens.to(device),
            visual_index=None if p.visual_index is None else p.visual_index.to(device),
            shared=None if p.shared is None else p.shared.to(device),
        )
        return replace(
            self,
            packed=packed,
            rows=self.rows.to(device),
            targets=self.targets.to(device),
            pixels=None if self.pixels is None else self.pixels.to(device),
            features=None if self.features is None else self.features.to(device),
        )


def encode_sample(
    sample: Sample | Caption,
    tokenizer: Tokenizer,
    image_rows: int,
    max_length: int,
    look: Callable[[Any], Tensor] | None = None,
    cut_answers: bool = True,
) -> EncodedSample:
    """Tokenize and label one sample.

    max_length: tokens predicted at most, so max_length + 1 ids. look turns a picture of the sample into
    pixels (3, S, S) or cached features (1 + P, E); without it the pictures must be such tensors.
    cut_answers: an answer longer than the context is cut, as the original does; otherwise it is an error.
    DataError names the record: no labelled token is left, a picture is not there or cannot be read.
    """
    if isinstance(sample, Caption):
        pieces, images = caption_pieces(sample.text, sample.with_header), [sample.image]
    else:
        pieces, images = training_pieces(sample.messages)
        images = [_picture(sample, image) for image in images]
    ids, supervised = encode_training(pieces, tokenizer, image_rows, max_length, sample.record, cut_answers)
    labels = [i if s else IGNORED for i, s in zip(ids, supervised, strict=True)]
    used = images[: ids.count(IMAGE_ID) // image_rows]
    visual = tuple(_look(look, image, sample.record) for image in used) if look else tuple(used)
    return EncodedSample(ids, labels, visual, sample.record)


def _look(look: Callable[[Any], Tensor], image: Any, record: str) -> Tensor:
    try:
        return look(image)
    except ImageError as error:
        named = isinstance(image, os.PathLike)
        reason = Reason.MISSING_PICTURE if named and not os.path.exists(image) else Reason.BROKEN_PICTURE
        raise DataError(f"{record}: {reason}: {error}", reason) from error


def _picture(sample: Sample, image: Any) -> Any:
    if not isinstance(image, int):
        return image
    if not 0 <= image < len(sample.images):
        raise DataError(f"{sample.record}: picture {image} of {len(sample.images)}; there is no such picture")
    return sample.images[image]


def pack(samples: Sequence[EncodedSample], image_rows: int) -> TrainingBatch:
    """Samples end to end. image_rows: rows one picture takes (queries + 1).

    DataError names the record that has no labelled token, or whose pictures and picture rows do not match.
    """
    rows: list[int] = []
    targets: list[int] = []
    for sample in samples:
        _check(sample, image_rows)
    prefix = shared_length(samples)
    start = 0  # where the sample's rows would begin, were its prefix among them
    for sample in samples:
        # The first token is predicted by nothing.
        labelled = [i for i, label in enumerate(sample.labels) if i and label != IGNORED]
        rows += [start + i - 1 for i in labelled]
        targets += [sample.labels[i] for i in labelled]
        start += len(sample.token_ids) - prefix
    pixels, features, from_pixels = _stack([v for sample in samples for v in sample.visual], samples)
    return TrainingBatch(
        packed=_pack_ids([sample.token_ids for sample in samples], prefix),
        rows=torch.tensor(rows, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        pixels=pixels,
        features=features,
        records=tuple(sample.record for sample in samples),
        from_pixels=from_pixels,
    )


def _check(sample: EncodedSample, image_rows: int) -> None:
    ids, labels = sample.token_ids, sample.labels
    if len(ids) != len(labels):
        raise DataError(f"{sample.record}: {len(ids)} token ids but {len(labels)} labels")
    if all(label == IGNORED for label in labels[1:]):
        raise DataError(f"{sample.record}: no labelled token; an answer or caption must fit")
    negative = sum(i < 0 for i in ids)
    if negative != len(sample.visual) * image_rows:
        raise DataError(
            f"{sample.record}: {negative} picture rows for {len(sample.visual)} pictures; "
            f"each picture takes {image_rows} rows"
        )


def _stack(
    visual: list[Tensor], samples: Sequence[EncodedSample]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Pixels and features of all pictures, and, if there are both, which ones came as pixels."""
    pixels, features = ([v for v in visual if v.dim() == dim] for dim in (3, 2))
    shapes = {tuple(v.shape) for v in visual}
    if len(shapes) > bool(pixels) + bool(features) or len(pixels) + len(features) < len(visual):
        raise DataError(
            f"pictures of shapes {sorted(shapes)} in one batch ({samples[0].record}, ...); wanted pixels "
            "(3, S, S) or cached features (1 + P, E), of one size each"
        )
    both = torch.tensor([v.dim() == 3 for v in visual]) if pixels and features else None
    return torch.stack(pixels) if pixels else None, torch.stack(features) if features else None, both


def shared_length(samples: Sequence[EncodedSample]) -> int:
    """Tokens that all samples begin with and that are computed once: before any picture and any label."""
    if len(samples) < 2:
        return 0
    first = samples[0]
    most = min(len(sample.token_ids) for sample in samples) - 1
    length = 0
    for place, token in enumerate(first.token_ids[:most]):
        # A row predicts the label behind it.
        if token < 0 or any(s.token_ids[place] != token or s.labels[place + 1] != IGNORED for s in samples):
            break
        length = place + 1
    return length if length >= WORTH_SHARING else 0


def _pack_ids(sequences: Sequence[Sequence[int]], prefix: int) -> PackedBatch:
    bounds = (0, *accumulate(len(ids) for ids in sequences))
    kept = [ids[prefix if number else 0 :] for number, ids in enumerate(sequences)]
    flat = torch.tensor([i for ids in kept for i in ids], dtype=torch.int64)
    visual_index = (flat < 0).nonzero()[:, 0]
    return PackedBatch(
        token_ids=flat.clamp_(min=0),
        positions=torch.cat(
            [torch.arange(len(w) - len(k), len(w)) for w, k in zip(sequences, kept, strict=True)]
        ),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        bounds=bounds,
        visual_index=visual_index if len(visual_index) else None,
        shared=ops.SharedPrefix.of(prefix, bounds) if prefix else None,
    )
