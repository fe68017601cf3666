"""Accuracy per kind of question on pictures that no training phase sees, by teacher forcing.

A question counts when every token of its answer is the most likely one: then greedy decoding gives exactly
this answer. It is stricter than the scoring rule and costs one forward pass.
"""

from __future__ import annotations

import random
from collections import defaultdict

import torch
from torch import Tensor

from owl_fast.models.owl import Owl
from owl_fast.training.packing import EncodedSample, pack
from recipes.owl_nano.dialogues import WEIGHTS, Dialogue, about_pair, ask_about, without_picture
from recipes.owl_nano.draw import draw, sample_size
from recipes.owl_nano.encoding import IMAGE_ROWS, Encoder, mark_picture
from recipes.owl_nano.pool import normalise
from recipes.owl_nano.settings import IMAGE_SIDE
from recipes.owl_nano.world import Scene, sample_scene


def picture(scene: Scene, rng: random.Random) -> Tensor:
    """(3, S, S), as the engine would see the drawn picture."""
    image = draw(scene, rng, sample_size(rng)).resize((IMAGE_SIDE, IMAGE_SIDE), 3)
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return normalise(levels.view(1, IMAGE_SIDE, IMAGE_SIDE, 3))[0]


class HeldOut:
    """per_task conversations in chat form for each task, half of the scenes with unseen combinations."""

    def __init__(self, encoder: Encoder, per_task: int, seed: int) -> None:
        rng = random.Random(seed)
        pool = [sample_scene(rng, split="heldout" if i % 2 else "train") for i in range(3 * per_task)]
        pixels = [picture(scene, rng) for scene in pool]
        self.samples: dict[str, list[EncodedSample]] = defaultdict(list)
        for task in (*WEIGHTS, "compare", "text"):
            while len(self.samples[task]) < per_task:
                chosen = rng.sample(range(len(pool)), {"compare": 2, "text": 0}.get(task, 1))
                dialogue = self._dialogue(rng, task, [pool[i] for i in chosen])
                if dialogue is not None:
                    encoded = encoder.dialogue(dialogue, "chat", mark_picture)
                    visual = tuple(pixels[i] for i in chosen)
                    self.samples[task].append(EncodedSample(encoded.ids, encoded.labels, visual))

    def _dialogue(self, rng: random.Random, task: str, scenes: list[Scene]) -> Dialogue | None:
        if task == "text":
            return without_picture(rng)
        if task == "compare":
            return about_pair(rng, scenes[0], scenes[1], max_questions=1)
        turns = ask_about(rng, scenes[0], task)
        return None if turns is None else Dialogue(tuple(scenes), turns)

    @torch.no_grad()
    def __call__(self, model: Owl) -> dict[str, float]:
        """The share of exact answers per task and over all of them."""
        rates = {task: self._rate(model, samples) for task, samples in self.samples.items()}
        return rates | {"mean": sum(rates.values()) / len(rates)}

    def _rate(self, model: Owl, samples: list[EncodedSample]) -> float:
        right = 0
        for start in range(0, len(samples), 32):
            part = samples[start : start + 32]
            batch = pack(part, IMAGE_ROWS)
            if batch.pixels is not None:
                batch.packed.visual_embeds = model.encode_images(batch.pixels).flatten(0, 1)
            hits = model.logits(model(batch.packed)[batch.rows]).argmax(-1) == batch.targets
            counts = [sum(label >= 0 for label in sample.labels) for sample in part]
            right += sum(bool(h.all()) for h in torch.split(hits, counts))
        return right / len(samples)
