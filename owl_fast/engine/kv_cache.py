"""The tensors of the paged cache of keys and values; whose block is whose is told by blocks.py."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.config import LlamaConfig
from owl_fast.engine.blocks import BLOCK_SIZE
from owl_fast.errors import ParameterError

KINDS = ("auto", "int8")  # what a user may ask for; auto is the model's dtype


def cache_dtype(kind: str, dtype: torch.dtype) -> torch.dtype:
    """Of the cache of a model of this dtype. ParameterError for another word."""
    if kind not in KINDS:
        raise ParameterError(f"kv_cache {kind!r:.40}; wanted one of {', '.join(KINDS)}")
    return torch.int8 if kind == "int8" else dtype


def position_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """What one position takes in all layers; int8 has a scale for each head."""
    head = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


def _empty_by_heads(shape: tuple[int, ...], **options: Any) -> Tensor:
    """(blocks, rows, heads, ...), whose heads lie one behind the other."""
    blocks, rows, heads, *rest = shape
    return torch.empty((blocks, heads, rows, *rest), **options).transpose(1, 2)


class KVCache:
    """Keys and values of every layer: (num_blocks, block_size, kv_heads, head_dim), in int8 with their
    float32 scales (num_blocks, block_size, kv_heads) behind them.

    For libowl_cpu a head's rows of a block lie side by side: memory serves few long pieces sooner than many
    short ones (benchmarks/LOG.md).
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device | str,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        by_heads = ops.backend(torch.device(device)) == "libowl_cpu"
        empty = _empty_by_heads if by_heads else torch.empty
        self.block_size = block_size
        self.num_blocks = num_blocks
        parts: list[tuple[tuple[int, ...], torch.dtype]] = [(shape, dtype)] * 2
        if dtype == torch.int8:
            parts += [(shape[:3], torch.float32)] * 2
        try:
            self.layers: list[tuple[Tensor, ...]] = [
                tuple(empty(size, dtype=kind, device=device) for size, kind in parts)
                for _ in range(config.num_hidden_layers)
            ]
        except RuntimeError:  # whatever the device calls it
            size = num_blocks * block_size * position_bytes(config, dtype)
            raise ParameterError(
                f"the cache for {num_blocks * block_size} positions takes {size / 2**30:.1f} GiB, more than "
                f"{device} has left; lower max_context or max_batch, or set kv_cache to int8"
            ) from None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def copy_blocks(self, copies: Seq[tuple[int, int]]) -> None:
        """Carry out (from, to) copies in every layer, all at once: a block may be read and then written."""
        if not copies:
            return
        device = self.layers[0][0].device
        source, target = torch.tensor(copies, device=device).unbind(1)
        for layer in self.layers:
            for tensor in layer:
                tensor.index_copy_(0, target, tensor.index_select(0, source))
