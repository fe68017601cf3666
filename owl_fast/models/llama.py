"""LLaMA (arXiv 2302.13971) over packed rows: one forward for prompts, chunks, decode steps and training.

N rows of all sequences, C hidden width, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from owl_fast import ops
from owl_fast.config import LlamaConfig
from owl_fast.models.batch import PackedBatch, PagedCache
from owl_fast.models.layers import Linear, RMSNorm
from owl_fast.models.recompute import Layer, run


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.head_dim = head
        kv_width = config.num_key_value_heads * head
        self.qkv_proj = Linear(width, (width, kv_width, kv_width), bias=False)
        self.o_proj = Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor, batch: PackedBatch, layer: int
    ) -> Tensor:
        """x (N, C) + attention of norm(x)."""
        qkv = self.qkv_proj(x, norm=norm, owner=batch.owner)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)) for part in qkv.split(self.qkv_proj.rows, -1)
        )  # (N, H | K | K, D)
        if batch.cache is None:
            query, key = ops.rotary(query, key, cos, sin)
            if torch.is_grad_enabled():
                value = value.contiguous()  # a view would keep all of qkv for backward
            if batch.shared is not None:
                query, key, value = map(batch.shared.lay_out, (query, key, value))
            attended = ops.varlen_attention(query, key, value, batch.bounds, batch.cu_seqlens)
            if batch.shared is not None:
                attended = batch.shared.take_back(attended)
        else:
            attended = _attend_cached(query, key, value, cos, sin, batch, batch.cache, layer)
        return self.o_proj(attended.flatten(1), residual=x, owner=batch.owner)


def _attend_cached(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    batch: PackedBatch,
    cache: PagedCache,
    layer: int,
) -> Tensor:
    """Rotation, append and attention over the cache. cos, sin: of LlamaModel._angles."""
    key_cache, value_cache, *int8 = cache.layers[layer]
    scales: tuple[Tensor | None, Tensor | None] = (int8[0], int8[1]) if int8 else (None, None)
    caches, slots, tables = (key_cache, value_cache), cache.slot_mapping, cache.block_tables
    lengths = cache.context_lens
    if batch.decodes and ops.decodes_at_once(query):
        if cache.workspace is None and ops.uses_kernels(query):
            longest = tables.shape[1] * key_cache.shape[1]
            cache.workspace = ops.DecodeWorkspace.make(len(query), query.shape[1], longest, key_cache)
        args = (query, key, value, cos, sin, batch.positions, *caches, slots, tables, lengths, *scales)
        return ops.decode_attention(*args, workspace=cache.workspace)
    query = ops.rotary_append(query, key, value, cos, sin, *caches, slots, *scales)
    return ops.paged_attention(
        query, *caches, tables, batch.cu_seqlens, lengths, batch.bounds, cache.lengths, *scales
    )


class LlamaMlp(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = Linear(width, (inner, inner), bias=False)
        self.down_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, norm: RMSNorm, owner: Tensor | None) -> Tensor:
        """x (N, C) + feed-forward of norm(x)."""
        inner = self.gate_up_proj(x, norm=norm, activation="swiglu", owner=owner)
        return self.down_proj(inner, residual=x, owner=owner)


class LlamaLayer(Layer):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: PackedBatch, layer: int) -> Tensor:
        x = self.self_attn(x, self.input_layernorm, cos, sin, batch, layer)
        return self.mlp(x, self.post_attention_layernorm, batch.owner)


class TokenEmbedding(nn.Module):
    """Token vectors; the padding row gets no gradient, as in the original."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.padding_idx = config.pad_token_id

    def forward(self, token_ids: Tensor) -> Tensor:
        return ops.embedding(token_ids, self.weight, self.padding_idx)


class LlamaModel(nn.Module):
    """Embedded rows (N, C) -> hidden rows (N, C) after the final norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._every_angle: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        cos, sin = self._angles(x, batch)
        for index, layer in enumerate(self.layers):
            x = run(layer, x, cos, sin, batch, index)
        return self.norm(x)

    def _angles(self, x: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """cos and sin (., D/2) of the rows; for a decode step in one call of every position, made once."""
        config = self.config
        tables = partial(ops.rotary_tables, head_dim=config.head_dim, theta=config.rope_theta, dtype=x.dtype)
        if not (batch.decodes and ops.decodes_at_once(x)):
            return tables(batch.positions)
        kept = self._every_angle
        if kept is None or kept[0].dtype != x.dtype or kept[0].device != x.device:
            positions = torch.arange(config.max_position_embeddings, device=x.device)
            kept = self._every_angle = tables(positions)
        return kept


class Llama(nn.Module):
    """The language model and its head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
