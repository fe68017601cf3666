"""Greedy answers of a model that is being trained: whole forward passes, without the engine's cache.

A model in training mixes precisions and carries updates that an engine would fold in; a few short answers now
and then are cheap enough without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl


@torch.no_grad()
def greedy_answers(
    model: Owl, prompts: Sequence[Sequence[int]], visual: Tensor | None, eos: int, max_tokens: int
) -> list[list[int]]:
    """Token ids that follow each prompt, without EOS. Negative ids are picture rows.

    visual: pixels (n, 3, S, S) of all prompts' pictures in order, or None. The caller chooses eval mode and
    autocast.
    """
    rows = None if visual is None else model.encode_images(visual).flatten(0, 1)
    sequences = [list(prompt) for prompt in prompts]
    running = list(range(len(sequences)))
    for _ in range(max_tokens):
        batch = PackedBatch.from_sequences(sequences, rows, device=model.device)
        last = torch.tensor(batch.bounds[1:], device=model.device) - 1
        chosen = model.logits(model(batch)[last]).argmax(-1).tolist()
        for index in running:
            sequences[index].append(chosen[index])
        running = [index for index in running if chosen[index] != eos]
        if not running:
            break
    answers = [ids[len(prompt) :] for ids, prompt in zip(sequences, prompts, strict=True)]
    return [ids[:-1] if ids and ids[-1] == eos else ids for ids in answers]
