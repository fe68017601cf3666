"""What a model is, how much memory it takes, and with how many heads it may see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import torch

from owl_fast import machine
from owl_fast.checkpoints import Source
from owl_fast.config import LANGUAGE_SCHEMES, OwlConfig, Quantization
from owl_fast.engine.placement import pick_device, pick_dtype, weight_count
from owl_fast.engine.plan import Setup, choose
from owl_fast.errors import UnsupportedError
from owl_fast.summary import config_rows, said_precision, size_text

Rows = list[tuple[str, str]]

HEADS = (8, 16)  # of the first release's code and of the later one's
CONTEXT = 2048


class Heads(NamedTuple):
    """Heads of the vision tower and of the abstractor."""

    vision: int
    abstractor: int

    def __str__(self) -> str:
        if self.vision == self.abstractor:
            return f"{self.vision} heads"
        return f"{self.vision} vision heads, {self.abstractor} abstractor heads"


def source_rows(source: Source) -> Rows:
    """What a model on disk is: its form, config, files and memory."""
    weights = source.weights
    dtypes = Counter(str(entry.info.dtype).removeprefix("torch.") for entry in weights.entries.values())
    kinds = ", ".join(name for name, _ in dtypes.most_common())
    form = [f"as in {source.layout.release}"]
    if source.config.video:
        form.append("with videos")
    if source.updates:
        form.append(f"{len(source.updates)} weights with low-rank updates, alpha {source.alpha:g}")
    if source.adapter is not None:
        form.append(f"with the adapter {source.adapter}")
    return [
        ("form", ", ".join(form)),
        *config_rows(source.config),
        ("files", f"{len(weights.files)} of weights, {size_text(weights.nbytes)}, {kinds}"),
        *memory_rows(source.config),
    ]


def memory_rows(config: OwlConfig) -> Rows:
    """What one conversation takes in each precision, and where that much is free."""
    context = min(CONTEXT, config.llama.max_position_embeddings)
    places = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    rows = [("weights", f"{weight_count(config) / 1e6:.1f} M")]
    for name, dtype, held in _precisions(config):
        setups = [Setup(place, dtype, context, max_batch=1) for place in places]
        memory = setups[0].memory(held)
        fitting = [str(setup.device) for setup in setups if setup.fits(held)]
        parts = [size_text(n) for n in (memory.weights, memory.cache, memory.activations)]
        needed = f"{parts[0]} + {parts[1]} for {context} positions + {parts[2]} to work in"
        rows.append((f"in {name}", f"{needed}; fits on {', '.join(fitting) or 'nothing here'}"))
    return rows


def taken_row(
    config: OwlConfig, device: str, dtype: str, quant: str, quant_vision: str | None
) -> tuple[str, str]:
    """What a chat with these flags would load."""
    place = pick_device(device)
    setup = Setup(place, pick_dtype(dtype, place, config), CONTEXT, max_batch=1)
    name = f"--quant {quant}"
    try:
        chosen = choose(config, setup, quant, quant_vision)
    except UnsupportedError as error:
        return name, str(error)
    held = said_precision(setup.dtype, chosen.quantization)
    return name, f"{held}, {size_text(setup.memory(chosen).total)} on {machine.device_name(place)}"


def _precisions(config: OwlConfig) -> list[tuple[str, torch.dtype, OwlConfig]]:
    """Name, dtype of what is not quantized, and how the rest is held; of quantized files that alone."""
    half = torch.bfloat16
    if config.quantization is not None:
        return [(str(config.quantization), half, config)]
    schemes = [
        (scheme, half, replace(config, quantization=Quantization(scheme))) for scheme in LANGUAGE_SCHEMES
    ]
    return [("fp32", torch.float32, config), ("bf16 or fp16", half, config), *schemes]


def candidates(source: Source) -> list[Heads]:
    """The head counts to try: what is told stays, the rest is 8 or 16, if the widths can be divided so."""
    vision, abstractor = source.told_heads
    tried = dict.fromkeys(Heads(vision or count, abstractor or count) for count in HEADS)
    widths = source.config.vision.hidden_size, source.config.abstractor.hidden_size
    return [heads for heads in tried if not any(width % n for width, n in zip(widths, heads, strict=True))]
