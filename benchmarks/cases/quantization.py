"""quantization: what int8 and int4 cost in accuracy, against the same model with its weights as they are.

owl-nano on held-out dialogues of its recipe, and a language model with heavy-tailed random weights (Student's
t of 4 and of 3 degrees of freedom) on random tokens: relative error of the logits, KL divergence from the
model as it is and agreement on the likeliest token, over all positions; of owl-nano also the share of right
answers. `plain` rounds with the scale that holds the largest weight, without a search; `on a CPU` rounds the
inputs of these layers as well, as libowl_cpu does.

--model tiny: few dialogues, for trying it out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import StudentT

from benchmarks import models
from benchmarks.harness import Row, row
from owl_fast import native
from owl_fast.checkpoints import load_model
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.placement import pick_device
from owl_fast.models.batch import PackedBatch
from owl_fast.models.layers import Linear, init_weights
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID, chat_pieces, encode
from owl_fast.quantization.whole import lay_out_, quantize_
from recipes.owl_nano import evaluate
from recipes.owl_nano.scoring import is_right

DIALOGUES, QUESTIONS = 12, 24  # of each of the 13 tasks: for the logits, and for the answers
TAILS = (4.0, 3.0)
SEQUENCES, LENGTH = 8, 256  # of random tokens
SEED = 5


class Variant(NamedTuple):
    """How a model is held. laid_out: for libowl_cpu, which rounds inputs too."""

    name: str
    held: Quantization
    plain: bool = False
    laid_out: bool = False

    def of(self, model: Owl) -> Owl:
        model = copy.deepcopy(model)
        quantize_(model, self.held, self.plain)
        if self.laid_out:
            lay_out_(model)
        return model


LANGUAGE = [
    Variant("int8", Quantization("int8")),
    Variant("int8 plain", Quantization("int8"), plain=True),
    *(
        Variant(f"int4 groups of {group}{' plain' * plain}", Quantization("int4", None, group), plain)
        for group in (32, 64, 128)
        for plain in (False, True)
    ),
]
VISION = [
    Variant("vision int8", Quantization(None, "int8")),
    Variant("int8, vision int8", Quantization("int8", "int8")),
    Variant("int4, vision int8", Quantization("int4", "int8")),
]
ON_A_CPU = [
    variant._replace(name=f"{variant.name} on a CPU", laid_out=True)
    for variant in (*LANGUAGE, *VISION)
    if variant.name in ("int8", "int4 groups of 32", "vision int8", "int4, vision int8")
]
NOT_ANSWERED = ("plain", "64")


def run(args: argparse.Namespace) -> list[Row]:
    """Rows of every model and scheme."""
    device, small = pick_device(args.device), args.model == "tiny"
    nano = load_model(models.NANO, dtype=torch.float32, device=device)
    dialogues = evaluate.cases("own", 1 if small else DIALOGUES, SEED)
    has_library = device.type == "cpu" and native.library() is not None
    variants = [*LANGUAGE, *VISION, *(ON_A_CPU if has_library else ())]
    rows = _compared("owl-nano", nano, variants, lambda model: _dialogue_logits(model, dialogues))
    questions = evaluate.cases("own", 1 if small else QUESTIONS, SEED + 1)
    rows.append(_right("as it is", nano, questions))
    answered = [variant for variant in variants if not variant.name.endswith(NOT_ANSWERED)]
    rows += [
        _right(variant.name, variant.of(nano), questions) for variant in answered[: 1 if small else None]
    ]
    for tail in TAILS[:1] if small else TAILS:
        rows += _compared(
            f"student-t-{tail:g}", heavy_tailed(nano.config, tail, device), LANGUAGE, _random_logits
        )
    return rows


def heavy_tailed(config: OwlConfig, tail: float, device: torch.device) -> Owl:
    """A model whose language part has width 512 and linear weights of Student's t."""
    llama = replace(config.llama, hidden_size=512, intermediate_size=1408, num_attention_heads=8)
    model = Owl(replace(config, llama=replace(llama, num_key_value_heads=8)))
    init_weights(model, seed=SEED)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(SEED)
        for module in model.language_model.modules():
            if isinstance(module, Linear):
                weight = StudentT(tail).sample(module.weight.shape)
                module.put(weight * (tail / (tail - 2) * weight.shape[1]) ** -0.5)
        model.language_model.model.embed_tokens.weight.normal_()
    return model.to(device).requires_grad_(False).eval()


def _compared(
    name: str,
    model: Owl,
    variants: list[Variant],
    logits_of: Callable[[Owl], Tensor],
) -> list[Row]:
    """Logits of each variant beside those of the model as it is."""
    exact = logits_of(model)
    before = exact.log_softmax(-1)
    shape, rows = f"{name}, {len(exact)} tokens", []
    for variant in variants:
        logits = logits_of(variant.of(model))
        after = logits.log_softmax(-1)
        error = ((logits - exact).norm() / exact.norm()).item()
        divergence = (before.exp() * (before - after)).sum(-1).tolist()
        same = (logits.argmax(-1) == exact.argmax(-1)).double().mean().item()
        where = "quantization", shape, variant.name
        rows += [
            row(*where, "logit error", "relative", [error]),
            row(*where, "KL", "nats, mean", [sum(divergence) / len(divergence)]),
            row(*where, "KL", "nats", divergence),
            row(*where, "same top token", "share", [same]),
        ]
    return rows


@torch.inference_mode()
def _dialogue_logits(model: Owl, dialogues: list[evaluate.Case]) -> Tensor:
    """(tokens, V) in float64, of dialogues with the right answers: everywhere but in the pictures' places."""
    engine = models.engine(model, max_context=512)
    found = []
    for case in dialogues:
        answers = tuple(turn.answer for turn in case.dialogue.turns)
        told = [*evaluate.messages(case, answers[:-1]), {"role": "assistant", "content": answers[-1]}]
        ids = encode(chat_pieces(told)[0], engine.tokenizer, engine.config.image_rows)
        rows = engine.encode_images(list(case.pictures)).flatten(0, 1) if case.pictures else None
        batch = PackedBatch.from_sequences([ids], rows, device=model.device)
        text = torch.tensor([i != IMAGE_ID for i in ids], device=model.device)
        found.append(model.logits(model(batch))[text].double().cpu())
    return torch.cat(found)


@torch.inference_mode()
def _random_logits(model: Owl) -> Tensor:
    """(tokens, V) in float64, of random tokens."""
    generator = torch.Generator().manual_seed(SEED)
    vocabulary = model.config.llama.vocab_size
    ids = torch.randint(3, vocabulary, (SEQUENCES, LENGTH), generator=generator).tolist()
    return model.logits(model(PackedBatch.from_sequences(ids, device=model.device))).double().cpu()


def _right(name: str, model: Owl, questions: list[evaluate.Case]) -> Row:
    """The share of greedy answers that the recipe's rule finds right."""
    answered = evaluate.answer_all(models.engine(model, max_context=512, max_batch=16), questions)
    verdicts = [
        is_right(turn, answer)
        for case, answers in answered
        for turn, answer in zip(case.dialogue.turns, answers, strict=True)
    ]
    shape = f"owl-nano, {len(verdicts)} questions"
    return row("quantization", shape, name, "right answers", "share", [sum(verdicts) / len(verdicts)])
