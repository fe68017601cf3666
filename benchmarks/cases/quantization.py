"""quantization: what int8 and int4 cost in accuracy, against the same model with its weights as they are.

owl-nano on held-out dialogues of its recipe, and a language model with heavy-tailed random weights (Student's
t of 4 and of 3 degrees of freedom) on random tokens: relative error of the logits, KL divergence from the
model as it is and agreement on the likeliest token, over all positions; of owl-nano also the share of right
answers. `plain` rounds with the scale that holds the largest weight, without a search; `on a CPU` rounds the
inputs of these layers as well, as libowl_cpu does; `int8 cache` reads keys and values back from int8. That
also stands beside the logits which the original implementation gave for the models of tests/golden.

--model tiny: few dialogues, for trying it out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import StudentT

from benchmarks import golden, models
from benchmarks.harness import Row, row
from owl_fast import native
from owl_fast.checkpoints import load_model
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.placement import pick_device
from owl_fast.models.batch import PackedBatch
from owl_fast.models.layers import Linear, init_weights
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID
from owl_fast.quantization.whole import lay_out_, quantize_
from recipes.owl_nano import evaluate
from recipes.owl_nano.scoring import is_right

DIALOGUES, QUESTIONS = 12, 24  # of each of the 13 tasks: for the logits, and for the answers
TAILS = (4.0, 3.0)
SEQUENCES, LENGTH = 8, 256  # of random tokens
SEED = 5


class Variant(NamedTuple):
    """How a model is held. laid_out: for libowl_cpu, which rounds inputs too. int8_cache: so are its keys and
    values."""

    name: str
    held: Quantization | None = None
    plain: bool = False
    laid_out: bool = False
    int8_cache: bool = False

    def of(self, model: Owl) -> Owl:
        if self.held is None:
            return model
        model = copy.deepcopy(model)
        quantize_(model, self.held, self.plain)
        if self.laid_out:
            lay_out_(model)
        return model


AS_IT_IS = Variant("as it is")
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
CACHE = [
    Variant("int8 cache", int8_cache=True),
    Variant("int4, int8 cache", Quantization("int4"), int8_cache=True),
]
ON_A_CPU = [
    variant._replace(name=f"{variant.name} on a CPU", laid_out=True)
    for variant in (*LANGUAGE, *VISION, *CACHE)
    if variant.name in ("int8", "int4 groups of 32", "vision int8", "int4, vision int8", "int4, int8 cache")
]
NOT_ANSWERED = ("plain", "64")


def run(args: argparse.Namespace) -> list[Row]:
    """Rows of every model and scheme."""
    device, small = pick_device(args.device), args.model == "tiny"
    nano = load_model(models.NANO, dtype=torch.float32, device=device)
    dialogues = evaluate.cases("own", 1 if small else DIALOGUES, SEED)
    has_library = device.type == "cpu" and native.library() is not None
    variants = [*LANGUAGE, *VISION, *CACHE, *(ON_A_CPU if has_library else ())]
    rows = _compared("owl-nano", nano, variants, partial(_dialogue_logits, dialogues))
    questions = evaluate.cases("own", 1 if small else QUESTIONS, SEED + 1)
    answered = [variant for variant in variants if not variant.name.endswith(NOT_ANSWERED)]
    answered = [AS_IT_IS, *([LANGUAGE[0], CACHE[0]] if small else answered)]
    rows += [_right(variant, nano, questions) for variant in answered]
    for tail in TAILS[:1] if small else TAILS:
        tailed = heavy_tailed(nano.config, tail, device)
        rows += _compared(f"student-t-{tail:g}", tailed, [*LANGUAGE, *CACHE], _random_logits)
    for name in golden.NAMES:
        rows += beside_original(name, device)
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
    name: str, model: Owl, variants: list[Variant], logits_of: Callable[[Variant, Owl], Tensor]
) -> list[Row]:
    """Logits of each variant beside those of the model as it is."""
    exact = logits_of(AS_IT_IS, model)
    shape = f"{name}, {len(exact)} tokens"
    return [
        found
        for variant in variants
        for found in _differences(shape, variant.name, exact, logits_of(variant, model))
    ]


def _differences(shape: str, name: str, exact: Tensor, logits: Tensor) -> list[Row]:
    before, after = exact.log_softmax(-1), logits.log_softmax(-1)
    error = ((logits - exact).norm() / exact.norm()).item()
    divergence = (before.exp() * (before - after)).sum(-1).tolist()
    same = (logits.argmax(-1) == exact.argmax(-1)).double().mean().item()
    where = "quantization", shape, name
    return [
        row(*where, "logit error", "relative", [error]),
        row(*where, "KL", "nats, mean", [sum(divergence) / len(divergence)]),
        row(*where, "KL", "nats", divergence),
        row(*where, "same top token", "share", [same]),
    ]


def beside_original(name: str, device: torch.device) -> list[Row]:
    """A reference model's logits beside the original's, with its cache in float32 and in int8."""
    model = load_model(golden.checkpoint(name), dtype=torch.float32, device=device)
    samples = list(golden.samples(name))
    exact = torch.cat([sample.logits for sample in samples]).double()
    rows = []
    for variant in (AS_IT_IS, CACHE[0]):
        found = [_logits(variant, model, s.ids, s.pixels)[-len(s.logits) :] for s in samples]
        rows += _differences(f"golden {name}, {len(exact)} tokens", variant.name, exact, torch.cat(found))
    return rows


def _dialogue_logits(dialogues: list[evaluate.Case], variant: Variant, nano: Owl) -> Tensor:
    """(tokens, V) in float64, of dialogues with the right answers: everywhere but in the pictures' places."""
    model = variant.of(nano)
    reader = models.engine(model, max_context=512)._reader
    found = []
    for case in dialogues:
        answers = tuple(turn.answer for turn in case.dialogue.turns)
        told = [*evaluate.messages(case, answers[:-1]), {"role": "assistant", "content": answers[-1]}]
        asked = reader.read(told)
        text = torch.tensor([i != IMAGE_ID for i in asked.ids])
        found.append(_logits(variant, model, asked.ids, asked.pixels)[text])
    return torch.cat(found)


@torch.inference_mode()
def _logits(variant: Variant, model: Owl, ids: list[int], pixels: Sequence[Tensor]) -> Tensor:
    """(tokens, V) in float64, of one sequence; model: of this variant. pixels: (3, S, S) of each picture."""
    pictures = [model.encode_images(picture[None].to(model.device))[0] for picture in pixels]
    batch = PackedBatch.from_sequences([ids], torch.cat(pictures) if pictures else None, device=model.device)
    return _answered(variant, model, batch)


@torch.inference_mode()
def _answered(variant: Variant, model: Owl, batch: PackedBatch) -> Tensor:
    if variant.int8_cache:
        batch = models.behind_cache(batch, model.config.llama, torch.int8)
    return model.logits(model(batch)).double().cpu()


def _random_logits(variant: Variant, tailed: Owl) -> Tensor:
    """(tokens, V) in float64, of random tokens."""
    model, generator = variant.of(tailed), torch.Generator().manual_seed(SEED)
    vocabulary = model.config.llama.vocab_size
    ids = torch.randint(3, vocabulary, (SEQUENCES, LENGTH), generator=generator).tolist()
    return _answered(variant, model, PackedBatch.from_sequences(ids, device=model.device))


def _right(variant: Variant, nano: Owl, questions: list[evaluate.Case]) -> Row:
    """The share of greedy answers that the recipe's rule finds right."""
    kept_as = "int8" if variant.int8_cache else "auto"
    asked = models.engine(variant.of(nano), max_context=512, max_batch=16, kv_cache=kept_as)
    verdicts = [
        is_right(turn, answer)
        for case, answers in evaluate.answer_all(asked, questions)
        for turn, answer in zip(case.dialogue.turns, answers, strict=True)
    ]
    shape, share = f"owl-nano, {len(verdicts)} questions", sum(verdicts) / len(verdicts)
    return row("quantization", shape, variant.name, "right answers", "share", [share])
