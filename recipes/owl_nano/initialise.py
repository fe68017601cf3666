"""Starting weights: of the language model, which imitate trained attention, and of the abstractor.

Binding ("a red star, a blue circle: the star is ...") needs two steps of attention that fit together, and a
small model stays at chance until both exist. So they are laid in at the start, and the drills sharpen them:
heads of the first layer look one, two and three rows back (through the phase of the rotary
embedding), and half of the heads of the later layers have equal query and key weights on the slowly turning
dimensions: they look at rows with the same content.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from owl_fast.models.layers import init_weights
from owl_fast.models.llama import LlamaLayer
from owl_fast.models.owl import Owl
from recipes.owl_nano.encoding import Encoder

EMBEDDING_STD = 0.15
CONSTANT = 0  # the embedding dimension that is the same for every token
LOOK_BACK = (1, 1, 2, 2, 3)  # rows that the first heads of the first layer look back
FAST_PAIRS = 4  # rotary pairs that carry the look-back phase
LOOK_SHARPNESS = 6.0
MATCH_GAIN = 1.5


def initialise(model: Owl, seed: int) -> None:
    """Fill every parameter of the model; the vision parts get N(0, 0.02) and sin-cos positions."""
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    llama = model.language_model.model
    width, layers = llama.config.hidden_size, [cast("LlamaLayer", layer) for layer in llama.layers]
    with torch.no_grad():
        embedding = llama.embed_tokens.weight
        embedding.normal_(0.0, EMBEDDING_STD, generator=generator)
        embedding[:, CONSTANT] = EMBEDDING_STD * 4
        for index, layer in enumerate(layers):
            for linear in (layer.self_attn.qkv_proj, layer.mlp.gate_up_proj):
                linear.get_parameter("weight").normal_(0.0, width**-0.5, generator=generator)
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                weight = linear.get_parameter("weight")
                std = weight.shape[1] ** -0.5 * (2 * len(layers)) ** -0.5
                weight.normal_(0.0, std, generator=generator)
            weight = layer.self_attn.qkv_proj.get_parameter("weight")
            if index == 0:
                _look_back(weight, llama.config.head_dim, llama.config.rope_theta)
            else:
                _match(weight, llama.config.head_dim, llama.config.num_attention_heads // 2)
        positions = model.vision_model.embeddings.position_embedding
        side = math.isqrt(positions.shape[1] - 1)
        positions[0, 1:] = sin_cos_positions(side, positions.shape[2]) * 0.5


def _look_back(qkv: Tensor, head_dim: int, theta: float) -> None:
    """Query and key read only the constant dimension; the query's phase is turned by the distance."""
    width = qkv.shape[1]
    half = head_dim // 2
    frequency = theta ** (-torch.arange(half) / half)
    fast = torch.arange(FAST_PAIRS)
    for head, distance in enumerate(LOOK_BACK):
        start = head * head_dim
        query, key = qkv[start : start + head_dim], qkv[width + start : width + start + head_dim]
        query.mul_(0.1), key.mul_(0.1)
        angle = -distance * frequency[:FAST_PAIRS]
        query[fast, CONSTANT] = LOOK_SHARPNESS * torch.cos(angle)
        query[fast + half, CONSTANT] = LOOK_SHARPNESS * torch.sin(angle)
        key[fast, CONSTANT] = 1.0


def _match(qkv: Tensor, head_dim: int, heads: int) -> None:
    """Equal query and key weights on the slow half of the rotary pairs, nothing on the fast half."""
    width = qkv.shape[1]
    half = head_dim // 2
    slow = torch.arange(head_dim) % half >= half // 2
    for head in range(heads):
        start = head * head_dim
        query, key = qkv[start : start + head_dim], qkv[width + start : width + start + head_dim]
        query[slow] *= MATCH_GAIN
        query[~slow] *= 0.1
        key.copy_(query)


def prepare_abstractor(model: Owl, encoder: Encoder, seed: int) -> None:
    """Start the abstractor with rows of the stand-in rows' size; vit_eos is their closing row."""
    generator = torch.Generator().manual_seed(seed)
    abstractor = model.abstractor
    with torch.no_grad():
        model.query_tokens.normal_(0.0, 1.0, generator=generator)
        for parameter in abstractor.encoder.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        abstractor.visual_fc.get_parameter("weight").normal_(0.0, 0.015, generator=generator)
        closing = encoder.text(".")[-1]
        abstractor.vit_eos.copy_(model.language_model.model.embed_tokens.weight[closing])


def sin_cos_positions(side: int, width: int) -> Tensor:
    """(side * side, width): sines and cosines of the row in the first half, of the column in the second."""
    quarter = width // 4
    frequency = 100.0 ** (-torch.arange(quarter) / quarter)
    angle = torch.arange(side)[:, None] * frequency  # (side, quarter)
    axis = torch.cat((angle.sin(), angle.cos()), dim=1)
    rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    return torch.cat((rows, columns), dim=1)
