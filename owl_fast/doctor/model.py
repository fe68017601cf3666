"""What a model is, how much memory it takes, and with how many heads it may see."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch

from owl_fast import machine
from owl_fast.checkpoints import Source
from owl_fast.config import OwlConfig
from owl_fast.models.owl import Owl
from owl_fast.summary import config_rows, size_text

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
    """What one conversation takes in each precision, and where that much is."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Owl(config).parameters())
    llama, context = config.llama, min(CONTEXT, config.llama.max_position_embeddings)
    places = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    rows = [("weights", f"{count / 1e6:.1f} M")]
    for name, size in (("fp32", 4), ("bf16 or fp16", 2)):
        cache = 2 * llama.num_hidden_layers * llama.num_key_value_heads * llama.head_dim * context * size
        fitting = [
            str(place) for place in places if count * size + cache < 0.9 * machine.device_memory(place)
        ]
        needed = f"{size_text(count * size)} + {size_text(cache)} for {context} positions"
        rows.append((f"in {name}", f"{needed}; fits on {', '.join(fitting) or 'nothing here'}"))
    return rows


def candidates(source: Source) -> list[Heads]:
    """The head counts to try: what is told stays, the rest is 8 or 16, if the widths can be divided so."""
    vision, abstractor = source.told_heads
    tried = dict.fromkeys(Heads(vision or count, abstractor or count) for count in HEADS)
    widths = source.config.vision.hidden_size, source.config.abstractor.hidden_size
    return [heads for heads in tried if not any(width % n for width, n in zip(widths, heads, strict=True))]
