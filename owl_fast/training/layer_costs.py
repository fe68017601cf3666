"""What one layer keeps for backward at each level (models/recompute.py), and what it computes again.

Formulas over what its operations keep: their inputs, as far as something needs them.

N rows, s bytes of a number of the residual stream, b of a product's factor. Widths: C (H heads), K of keys,
F of the feed-forward part.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from owl_fast import ops
from owl_fast.config import OwlConfig
from owl_fast.models.layers import Linear
from owl_fast.models.llama import LlamaLayer
from owl_fast.models.recompute import LEVELS, Level

ELEMENTWISE = 40  # operations a number of norms, activations and rotation, as far as time is concerned


@dataclass(frozen=True)
class Bytes:
    """Of a number: stream of the residual stream, product of a product's factor. gpu: the kernels' attention
    keeps its result and the logarithm of its sums, that of a CPU neither."""

    stream: int
    product: int
    gpu: bool

    def sums(self, heads: int) -> int:
        """Of attention, for one row."""
        return 4 * heads if self.gpu else 0


@dataclass(frozen=True)
class LayerCost:
    """Bytes by level: kept from forward to backward; again: on top of that while the layer computes again;
    backward: what its backward takes at a time beyond those, gradients above all. flops: operations done
    again."""

    kept: dict[Level, int]
    again: dict[Level, int]
    backward: dict[Level, int]
    flops: dict[Level, float]


def llama_cost(layer: LlamaLayer, config: OwlConfig, rows: int, length: int, size: Bytes) -> LayerCost:
    """rows: of all sequences; length: of a usual one, which counts for the time of attention alone."""
    llama, s, b = config.llama, size.stream, size.product
    width, inner, heads = llama.hidden_size, llama.intermediate_size, llama.num_attention_heads
    keys = llama.num_key_value_heads * llama.head_dim
    attention, mlp = layer.self_attn, layer.mlp
    qkv, sums = width + 2 * keys, size.sums(heads)
    normed = width * b * (keeps_input(attention.qkv_proj) + keeps_input(mlp.gate_up_proj))
    gated = inner * b * keeps_input(mlp.down_proj)
    attended = width * b * (size.gpu or keeps_input(attention.o_proj))
    x, mid, products = width * s, width * s, (qkv + 2 * inner) * b
    whole = x + mid + products + attended + sums + normed + gated
    kept: dict[Level, int] = {
        "whole": whole,
        "products": x + mid + products + width * b + sums,
        "attention": x + width * b + sums,
        "input": x,
    }
    again: dict[Level, int] = {
        "whole": 0,
        "products": normed + gated + qkv * b,  # rotated beside what came out of the product
        "attention": whole - x,
        "input": whole - x,
    }
    linear = 2.0 * width * (qkv + width + 2 * inner)
    small = ELEMENTWISE * (2.0 * width + inner)
    look = 2.0 * width * length
    flops: dict[Level, float] = {
        "whole": 0.0,
        "products": small,
        "attention": small + linear,
        "input": small + linear + look,
    }
    # Of the MLP; of attention, when what the MLP kept is gone unless the level keeps it until the end.
    gradients = width * s + 3 * inner * b, width * s + (width + qkv) * b
    extra = 0 if size.gpu else ops.attention_bytes(length, heads, width, b)
    backward = {
        level: max(rows * gradients[0], rows * (gradients[1] - 2 * inner * b * (level != "products")) + extra)
        for level in LEVELS
    }
    return _cost(kept, again, backward, flops, rows)


def vision_cost(config: OwlConfig, pictures: int, size: Bytes) -> LayerCost:
    """A layer that trains."""
    vision, s, b = config.vision, size.stream, size.product
    width, inner, heads = vision.hidden_size, vision.intermediate_size, vision.num_attention_heads
    length = 1 + vision.num_patches
    x, mid, sums = width * s, width * s, size.sums(heads)
    products = (3 * width + inner) * b
    inputs = (3 * width + inner) * b  # of qkv_proj, dense, fc1 and fc2
    whole = x + mid + products + inputs + sums
    kept: dict[Level, int] = {
        "whole": whole,
        "products": x + mid + products + width * b + sums,
        "attention": x + width * b + sums,
        "input": x,
    }
    again: dict[Level, int] = {
        "whole": 0,
        "products": (2 * width + inner) * b,
        "attention": whole - x - width * b - sums,
        "input": whole - x,
    }
    linear = 2.0 * width * (4 * width + inner)
    small, look = ELEMENTWISE * (2.0 * width + inner), 4.0 * width * length
    flops: dict[Level, float] = {
        "whole": 0.0,
        "products": small,
        "attention": small + linear,
        "input": small + linear + look,
    }
    count = pictures * length
    backward = dict.fromkeys(LEVELS, (width * s + 2 * inner * b) * count)
    return _cost(kept, again, backward, flops, count)


def abstractor_cost(config: OwlConfig, pictures: int, size: Bytes) -> LayerCost:
    """A layer that trains. Cross-attention is no result that is kept by itself."""
    part, s, b = config.abstractor, size.stream, size.product
    width, inner, heads = part.hidden_size, part.intermediate_size, part.num_attention_heads
    queries, image = config.num_query_tokens, 1 + config.vision.num_patches
    x = queries * width * s
    products = queries * (3 * width + 2 * inner) * b + 2 * image * width * b
    cast = 2 if s != b else 1  # the normed queries are cast for either product that takes them
    inputs = (queries * ((cast + 2) * width + 2 * inner) + image * width) * b
    attention = size.sums(heads) * queries + queries * width * b * size.gpu
    if not size.gpu:  # keys and values in one; the weights, and what dropout left of them
        pairs = heads * queries * (queries + image)
        attention = 2 * (queries + image) * width * b + pairs * b * (
            3 if part.attention_probs_dropout_prob else 1
        )
    whole = x + queries * width * s + products + inputs + attention
    kept: dict[Level, int] = {"whole": whole, "products": x + products, "attention": x, "input": x}
    again: dict[Level, int] = {level: whole - kept[level] for level in LEVELS}
    linear = 2.0 * width * (queries * (2 * width + 2 * inner) + (queries + image) * 2 * width)
    small, look = ELEMENTWISE * queries * (2.0 * width + inner), 4.0 * queries * width * (queries + image)
    flops: dict[Level, float] = {
        "whole": 0.0,
        "products": small + look,
        "attention": small + linear + look,
        "input": small + linear + look,
    }
    gradients = queries * (width * s + 3 * inner * b) + 3 * (queries + image) * width * b
    return _cost(kept, again, dict.fromkeys(LEVELS, gradients * pictures), flops, pictures)


def keeps_input(linear: Linear) -> bool:
    """Whether backward needs what the layer was given."""
    trains = isinstance(linear.weight, (Tensor, nn.Parameter)) and linear.weight.requires_grad
    return trains or any(True for _ in linear.updates())


def _cost(
    kept: dict[Level, int],
    again: dict[Level, int],
    backward: dict[Level, int],
    flops: dict[Level, float],
    count: int,
) -> LayerCost:
    """backward: of all that is counted, the others of one."""
    return LayerCost(
        {level: kept[level] * count for level in LEVELS},
        {level: again[level] * count for level in LEVELS},
        backward,
        {level: flops[level] * count for level in LEVELS},
    )
