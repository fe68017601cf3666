"""The visual abstractor: learned queries gather a picture into a few rows of the language model's width
(mPLUG-Owl, arXiv 2304.14178, section 3.1).

N pictures, Q queries, P image rows (class row included), E width, H heads, D = E / H, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from owl_fast import ops
from owl_fast.config import AbstractorConfig
from owl_fast.models.folded import FoldedProjections
from owl_fast.models.layers import LayerNorm, Linear
from owl_fast.models.recompute import Layer, run

NORM_EPS = 1e-5  # norm1, normk and norm2; only ffn_ln follows the config


class AbstractorAttention(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = Linear(width, width)
        self.key_value = Linear(width, (width, width))
        # One learned key and value of the first release; they pass through no linear layer and no norm.
        self.bias_k, self.bias_v = (
            nn.Parameter(torch.empty(1, 1, width)) if config.bias_kv else None for _ in range(2)
        )

    def forward(self, queries: Tensor, image: Tensor | None, projected: Tensor | None = None) -> Tensor:
        """queries (N, Q, E) and image (N, P, E), both normed -> (N, Q, E).

        projected (N, P, 2 E): the image's keys and values, if they are there already.
        """
        q = self.query(queries).unflatten(-1, (self.num_heads, -1))  # (N, Q, H, D)
        query_kv, image_kv = (
            x.unflatten(-1, (2, self.num_heads, -1))
            for x in (self.key_value(queries), self.key_value(image) if projected is None else projected)
        )  # (N, Q | P, 2, H, D)
        dropout = self.dropout if self.training else 0.0
        return ops.cross_attention(q, query_kv, image_kv, dropout, self._extra()).flatten(2)

    def _extra(self) -> Tensor | None:
        """The learned key and value (2, H, D), if the release has them."""
        if self.bias_k is None or self.bias_v is None:
            return None
        return torch.cat((self.bias_k, self.bias_v)).view(2, self.num_heads, -1)


class AbstractorMlp(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w13 = Linear(width, (inner, inner))
        self.ffn_ln = LayerNorm(inner, config.layer_norm_eps)
        self.w2 = Linear(inner, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.w2(self.ffn_ln(self.w13(x, activation="swiglu")), residual=residual)


class AbstractorOutput(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = Linear(config.hidden_size, config.hidden_size)
        self.norm2 = LayerNorm(config.hidden_size, NORM_EPS)
        self.mlp = AbstractorMlp(config)

    def forward(self, attended: Tensor, residual: Tensor) -> Tensor:
        x = self.out_proj(attended, residual=residual)
        return self.mlp(self.norm2(x), residual=x)


class AbstractorCrossAttention(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, NORM_EPS)
        self.normk = LayerNorm(config.hidden_size, NORM_EPS)
        self.attention = AbstractorAttention(config)
        self.output = AbstractorOutput(config)

    def forward(self, queries: Tensor, image: Tensor, projected: Tensor | None = None) -> Tensor:
        normed = self.norm1(queries)
        attended = self.attention(normed, self.normk(image) if projected is None else None, projected)
        return self.output(attended, residual=normed)  # the residual is the normed query, as released


class AbstractorLayer(Layer):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.crossattention = AbstractorCrossAttention(config)

    def forward(self, queries: Tensor, image: Tensor, projected: Tensor | None = None) -> Tensor:
        return self.crossattention(queries, image, projected)


class AbstractorEncoder(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AbstractorLayer(config) for _ in range(config.num_hidden_layers))
        self._folded = FoldedProjections()

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        for layer, projected in zip(self.layers, self._projected(image), strict=True):
            queries = run(layer, queries, image, projected)
        return queries

    def renew_folded(self) -> None:
        """Follow changes of the weights in place, as every forward does that is not a replay."""
        self._folded.refresh(*self._projections())

    def _projected(self, image: Tensor) -> Sequence[Tensor | None]:
        """Keys and values (N, P, 2 E) for every layer, where kernels run and nothing is trained."""
        if self.training or torch.is_grad_enabled() or not ops.uses_kernels(image):
            return [None] * len(self.layers)
        return self._folded(*self._projections(), image)

    def _projections(self) -> tuple[list[LayerNorm], list[Linear]]:
        blocks: list[Any] = [layer.crossattention for layer in self.layers]
        return [block.normk for block in blocks], [block.attention.key_value for block in blocks]


class Abstractor(nn.Module):
    """Queries (1, Q, E) and image features (N, P, E) -> rows (N, Q + 1, H_llm); the last is vit_eos.

    A video comes with the features of all its frames in a row and with 2 Q queries, of which each row of the
    result takes one of either half.
    """

    def __init__(self, config: AbstractorConfig, output_width: int, video: bool = False) -> None:
        super().__init__()
        self.encoder = AbstractorEncoder(config)
        self.visual_fc = Linear(config.hidden_size, output_width)
        self.temporal_visual_fc = Linear(config.hidden_size, output_width) if video else None
        self.vit_eos = nn.Parameter(torch.empty(1, 1, output_width))

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        return self._with_end(self.visual_fc(self._gather(queries, image)))

    def forward_videos(self, queries: Tensor, frames: Tensor) -> Tensor:
        """Queries (1, 2 Q, E) and features (N, T * P, E) -> rows (N, Q + 1, H_llm)."""
        assert self.temporal_visual_fc is not None
        of_pictures, of_time = self._gather(queries, frames).chunk(2, dim=1)  # (N, Q, E) each
        return self._with_end(self.visual_fc(of_pictures) + self.temporal_visual_fc(of_time))

    def _gather(self, queries: Tensor, features: Tensor) -> Tensor:
        return self.encoder(queries.expand(features.shape[0], -1, -1), features)

    def _with_end(self, rows: Tensor) -> Tensor:
        return torch.cat((rows, self.vit_eos.expand(rows.shape[0], -1, -1)), dim=1)
