"""The packed batch: the one shape in which the language model sees its input.

Prompts, chunks of prompts, decode steps and training samples are rows of one tensor; cu_seqlens says where
one sequence ends and the next begins. Nothing is ever padded.

N rows, B sequences, V rows that carry picture embeddings, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from owl_fast import ops


@dataclass
class PagedCache:
    """Where a batch's keys and values go in the paged cache, and what each sequence can see there."""

    # Per layer: key and value cache (blocks, block_size, heads, D), and their scales if they are int8.
    layers: list[tuple[Tensor, ...]]
    slot_mapping: Tensor  # (N,) int64: block * block_size + row, one slot per row of the batch
    block_tables: Tensor  # (B, max_blocks) int32
    context_lens: Tensor  # (B,) int32: keys visible, the batch's own rows included
    lengths: tuple[int, ...]  # context_lens on the host
    workspace: ops.DecodeWorkspace | None = None  # what decode kernels keep between programs, for all layers


@dataclass
class PackedBatch:
    """Rows of several sequences end to end."""

    token_ids: Tensor  # (N,) int64; any valid id where a picture row stands
    positions: Tensor  # (N,) int64
    cu_seqlens: Tensor  # (B + 1,) int32
    bounds: tuple[int, ...]  # cu_seqlens on the host
    visual_index: Tensor | None = None  # (V,) int64: rows replaced by picture embeddings
    visual_embeds: Tensor | None = None  # (V, H)
    owner: Tensor | None = None  # (N,) int32: whose updates a row takes, -1: nobody's (Linear.stack)
    cache: PagedCache | None = None  # None: every sequence is whole and nothing is kept
    shared: ops.SharedPrefix | None = (
        None  # rows that stand for all sequences; bounds are still of whole ones
    )

    @property
    def decodes(self) -> bool:
        """Whether it is one new row per sequence, behind cached ones."""
        return self.cache is not None and self.bounds == tuple(range(len(self.bounds)))

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        visual_embeds: Tensor | None = None,
        *,
        starts: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> PackedBatch:
        """Pack token-id lists; a negative id marks a picture row.

        visual_embeds (V, H): the picture rows of all sequences in order, one per negative id.
        starts: position of each sequence's first row (0 by default; the cached length for a chunk).
        """
        flat = torch.tensor([i for ids in sequences for i in ids], dtype=torch.int64)
        bounds = (0, *accumulate(len(ids) for ids in sequences))
        starts = starts or [0] * len(sequences)
        positions = torch.tensor(
            [p for ids, s in zip(sequences, starts, strict=True) for p in range(s, s + len(ids))],
            dtype=torch.int64,
        )
        visual_index = (flat < 0).nonzero()[:, 0]
        given = 0 if visual_embeds is None else visual_embeds.shape[0]
        assert given == len(visual_index), f"{len(visual_index)} picture rows in the ids, {given} embeddings"
        return cls(
            token_ids=flat.clamp_(min=0).to(device),
            positions=positions.to(device),
            cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
            bounds=bounds,
            visual_index=visual_index.to(device) if given else None,
            visual_embeds=visual_embeds if given else None,
        )
