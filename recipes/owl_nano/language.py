"""Phase 0: the small LLaMA learns to look things up and to hold the conversations, without eyes."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from owl_fast.training.packing import IGNORED
from owl_fast.training.ranks import Ranks
from owl_fast.training.sources import derive_seed
from recipes.owl_nano.dialogues import (
    WEIGHTS,
    Dialogue,
    about_pair,
    ask_about,
    sample_dialogue,
    training_scene,
    without_picture,
)
from recipes.owl_nano.drills import Curriculum, drill, recall_drill
from recipes.owl_nano.encoding import BOS, EOS, Encoded, Encoder, Form
from recipes.owl_nano.loop import run_updates
from recipes.owl_nano.settings import Schedule
from recipes.owl_nano.stand_ins import StandIns
from recipes.owl_nano.statements import statements
from recipes.owl_nano.world import Scene, caption

# The slower a kind of question is learned in text, the more often it is asked.
TEXT_WEIGHTS = WEIGHTS | {
    "count": 2.5,
    "describe": 2.6,
    "languages": 2.0,
    "read": 1.0,
    "multi": 0.8,
    "where": 0.8,
}
TEXT_SHARES = (0.6, 0.26, 0.14)  # conversations about one picture, two and none
ROW_NOISE = 0.15  # of a word vector's length, added to each stand-in row


class TextSource:
    """Draws drills, captions, statements and conversations, with stand-ins for the pictures, from rng."""

    def __init__(self, encoder: Encoder, curriculum: Curriculum) -> None:
        self.encoder, self.curriculum, self.rng = encoder, curriculum, random.Random()
        self.stand_ins = StandIns(encoder, self.rng)
        self.recall_tokens = tuple(range(259, encoder.tokenizer.vocab_size))

    def scene(self) -> Scene:
        return training_scene(self.rng)

    def drill(self) -> Encoded:
        if self.rng.random() < 0.1:
            return recall_drill(self.rng, self.recall_tokens)
        return drill(self.rng, self.encoder, self.stand_ins, self.curriculum.weights())

    def caption(self) -> Encoded:
        """A picture and its caption, as in stage 1; or statements about it."""
        scene = self.scene()
        result = Encoded()
        result.add([BOS])
        self.stand_ins.either(result, scene)
        if self.rng.random() < 0.75:
            result.add([*self.encoder.text(caption(scene)), EOS], supervised=True)
        else:
            self.encoder.sentences(result, statements(self.rng, scene, self.rng.randint(4, 9)))
        return result

    def conversation(self) -> Encoded:
        form: Form = "training" if self.rng.random() < 0.6 else "chat"
        questions = 6 if form == "training" else 3
        dialogue = sample_dialogue(self.rng, self.scene, TEXT_SHARES, questions, TEXT_WEIGHTS)
        return self.encoder.dialogue(dialogue, form, self.stand_ins.either)

    def draw(self, drills: float) -> Encoded:
        share = self.rng.random()
        if share < drills:
            return self.drill()
        return self.caption() if share < drills + (1 - drills) * 0.3 else self.conversation()


def pack(samples: list[Encoded]) -> tuple[PackedBatch, Tensor, Tensor]:
    """The batch without picture rows, and (M,) indices and targets of the positions that predict a label."""
    batch = PackedBatch.from_sequences([[max(i, 0) for i in s.ids] for s in samples])
    labels = torch.tensor([label for s in samples for label in [*s.labels[1:], IGNORED]])
    where = (labels != IGNORED).nonzero()[:, 0]
    return batch, where, labels[where]


def stand_in_rows(
    model: Owl, samples: list[Encoded], noise: float, generator: torch.Generator
) -> Tensor | None:
    """(V, C): each row the sum of its words' vectors, plus noise."""
    rows = [row for s in samples for row in s.rows]
    if not rows:
        return None
    weight = model.language_model.model.embed_tokens.weight
    flat = torch.tensor([i for row in rows for i in row])
    owner = torch.tensor([n for n, row in enumerate(rows) for _ in row])
    summed = torch.zeros(len(rows), weight.shape[1]).index_add(0, owner, F.embedding(flat, weight))
    scale = weight.detach().square().mean().sqrt() * noise
    return summed + torch.randn(summed.shape, generator=generator) * scale


def forward_logits(model: Owl, samples: list[Encoded], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    batch, where, targets = pack(samples)
    flat = torch.tensor([i for s in samples for i in s.ids])
    batch.visual_embeds = stand_in_rows(model, samples, ROW_NOISE, generator)
    batch.visual_index = None if batch.visual_embeds is None else (flat < 0).nonzero()[:, 0]
    return model.logits(model(batch)[where]), targets


def gate_sets(encoder: Encoder, per_task: int, seed: int, as_rows: bool) -> dict[str, list[Encoded]]:
    """Per task, single conversations in chat form; only the last answer counts."""
    rng = random.Random(seed)
    stand_ins = StandIns(encoder, rng)
    add = stand_ins.as_rows if as_rows else stand_ins.as_text
    found: dict[str, list[Encoded]] = defaultdict(list)
    for task in (*WEIGHTS, "compare", "text"):
        while len(found[task]) < per_task:
            if task == "text":
                dialogue = without_picture(rng)
            elif task == "compare":
                dialogue = about_pair(rng, training_scene(rng), training_scene(rng), max_questions=1)
            else:
                scene = training_scene(rng)
                turns = ask_about(rng, scene, task)
                if turns is None:
                    continue
                dialogue = Dialogue((scene,), turns)
            found[task].append(encoder.dialogue(dialogue, "chat", add))
    return found


@torch.no_grad()
def exact_matches(model: Owl, samples: list[Encoded]) -> float:
    """Share of samples whose every supervised token is the most likely one: greedy decoding is exact."""
    generator = torch.Generator().manual_seed(0)
    right = 0
    for start in range(0, len(samples), 64):
        part = samples[start : start + 64]
        logits, targets = forward_logits(model, part, generator)
        counts = [sum(label != IGNORED for label in s.labels) for s in part]
        right += sum(bool(h.all()) for h in torch.split(logits.argmax(-1) == targets, counts))
    return right / len(samples)


def train_language(
    model: Owl,
    encoder: Encoder,
    schedule: Schedule,
    drills: float,
    folder: Path,
    seed: int,
    curriculum: Curriculum,
) -> None:
    """Train the LLaMA in place; snapshots and metrics go to folder. drills: their share of the samples."""
    ranks = Ranks.current()
    source = TextSource(encoder, curriculum)
    generator = torch.Generator()
    gate = {f"gate {k}": gate_sets(encoder, 64, 99, k == "rows") for k in ("rows", "text")}

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        own = derive_seed(seed, "language", step, ranks.rank)
        source.rng.seed(own)
        generator.manual_seed(own)
        samples = [source.draw(drills) for _ in range(schedule.batch // ranks.size)]
        logits, targets = forward_logits(model, samples, generator)
        kinds = [kind for s in samples for kind in s.kinds]
        curriculum.record(kinds, (logits.argmax(-1) == targets).tolist())
        return F.cross_entropy(logits, targets), {}

    def evaluate() -> dict[str, float]:
        return {
            f"{k}, {task}": round(exact_matches(model, samples), 3)
            for k, sets in gate.items()
            for task, samples in sets.items()
        }

    parameters = dict(model.language_model.named_parameters())
    run_updates(parameters, schedule, folder, loss, curriculum.rates, evaluate)
