"""A model in a few words, for those who look at it in a terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from owl_fast import machine
from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, Quantization, VisionConfig

if TYPE_CHECKING:
    from owl_fast.engine.engine import Engine


def config_rows(config: OwlConfig) -> list[tuple[str, str]]:
    """(part, what it is) of the model's three parts."""
    vision, llama = config.vision, config.llama
    side, rows, pieces = vision.image_size, config.image_rows, llama.vocab_size
    return [
        ("vision tower", f"{_layers(vision)}; pictures of {side} x {side}, patches of {vision.patch_size}"),
        ("abstractor", f"{_layers(config.abstractor)}; {rows} positions a picture"),
        ("language model", f"{_layers(llama)}; {pieces} pieces, {llama.max_position_embeddings} positions"),
    ]


def model_name(model: str | None) -> str:
    """For the user: of a path or hub id its last part, of none that of the bundled model."""
    return "owl-nano" if model is None else os.path.basename(os.path.abspath(model))


def plan_text(name: str, engine: Engine, seconds: float) -> str:
    """A loaded model in a line. seconds: that loading took."""
    model = engine.model
    used, total = (n / (1 << 30) for n in (engine.memory().total, machine.device_memory(model.device)))
    parts = [
        f"{name} {said_precision(model.dtype, model.config.quantization)}",
        machine.device_name(model.device),
        f"{used:.1f}/{total:.1f} GiB",
        f"context {engine.max_context}",
        f"{seconds:.1f} s",
    ]
    return " · ".join(parts)


def said_precision(dtype: torch.dtype, quantization: Quantization | None) -> str:
    """The scheme of the language model where it is quantized, else the dtype of all that is not."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    if quantization is None:
        return name
    return str(quantization) if quantization.scheme else f"{name}, {quantization}"


def size_text(count: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.2f} GiB"


def _layers(part: VisionConfig | AbstractorConfig | LlamaConfig) -> str:
    return f"{part.num_hidden_layers} layers, width {part.hidden_size}, {part.num_attention_heads} heads"
