"""What the tensors of a state dict say about the model, for files without a config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt, prod
from pathlib import Path
from typing import Any

from owl_fast.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

LLAMA_HEAD_WIDTH = 128  # of every released LLaMA
VIDEO_MARK = "temporal_query_tokens"
MLP = "abstractor.encoder.layers.0.crossattention.output.mlp.w1.weight"


def infer_sizes(path: Path, shapes: Shapes) -> dict[str, Any]:
    """The sections of a config.json as far as shapes tell them; None, or nothing, where they do not.

    shapes: by the model's names, as the file has them; rotary frequencies by their own. path: for messages.
    CheckpointError names the tensor that is missing or of an impossible shape.
    """
    embeddings, llama = "vision_model.embeddings", "language_model.model"
    width, *patch = _shape(path, shapes, f"{embeddings}.patch_embed.weight", 2)
    side = isqrt(prod(patch) // 3)
    rows = _shape(path, shapes, f"{embeddings}.position_embedding", 2)[-2]
    grid = isqrt(max(rows - 1, 0))
    if 3 * side * side != prod(patch) or grid * grid != rows - 1:
        raise CheckpointError(
            f"{path}: patches of {prod(patch)} numbers and {rows} positions; "
            "wanted square patches of three colours and one more than a square number of positions"
        )
    queries = _shape(path, shapes, "query_tokens", 3)
    vocab, hidden = _shape(path, shapes, f"{llama}.embed_tokens.weight", 2)
    return {
        "num_query_tokens": queries[1],
        "video": VIDEO_MARK in shapes,
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": _shape(path, shapes, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
            "num_hidden_layers": _layers(shapes, "vision_model.encoder"),
            "image_size": grid * side,
            "patch_size": side,
        },
        "visual_abstractor_config": {
            "hidden_size": queries[2],
            "encoder_hidden_size": queries[2],
            "num_hidden_layers": _layers(shapes, "abstractor.encoder"),
            "intermediate_size": _mlp_width(path, shapes),
        },
        "text_config": {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": _shape(path, shapes, f"{llama}.layers.0.mlp.gate_proj.weight", 2)[0],
            "num_hidden_layers": _layers(shapes, llama),
            "num_attention_heads": _llama_heads(shapes, hidden),
        },
    }


def unread_sizes(path: Path, shapes: Shapes) -> dict[str, Any]:
    """What the original code of the first and of the video release does not take from its config.json."""
    return {
        "video": VIDEO_MARK in shapes,
        "visual_abstractor_config": {"intermediate_size": _mlp_width(path, shapes)},
    }


def _mlp_width(path: Path, shapes: Shapes) -> int:
    return _shape(path, shapes, MLP, 2)[0]


def _shape(path: Path, shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that has at least so many dimensions."""
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{path}: there is no tensor {name}; wanted a whole mPLUG-Owl state dict")
    if len(shape) < dimensions:
        raise CheckpointError(f"{path}: tensor {name} has shape {shape}; wanted {dimensions} dimensions")
    return shape


def _layers(shapes: Shapes, owner: str) -> int:
    pattern = re.compile(re.escape(owner) + r"\.layers\.(\d{1,9})\.")
    return 1 + max((int(match[1]) for name in shapes if (match := pattern.match(name))), default=-1)


def _llama_heads(shapes: Shapes, hidden: int) -> int | None:
    """From the rotary frequencies, one for every two features of a head; the usual width without them."""
    frequencies = shapes.get("language_model.model.layers.0.self_attn.rotary_emb.inv_freq")
    width = 2 * frequencies[0] if frequencies else LLAMA_HEAD_WIDTH
    return None if not width or hidden % width else hidden // width
