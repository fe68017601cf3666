"""What training will take of a device's memory, part by part, before anything is loaded.

The peak is that of an update after the first one, when gradients and optimizer states are there, and the
largest of its moments: the loss, the backward pass of each part, the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import nn

from owl_fast import native, ops
from owl_fast.checkpoints.load import empty_model
from owl_fast.config import OwlConfig
from owl_fast.errors import UnsupportedError
from owl_fast.models.abstractor import AbstractorLayer
from owl_fast.models.layers import PackedWeight
from owl_fast.models.llama import LlamaLayer
from owl_fast.models.owl import Owl
from owl_fast.models.recompute import LEVELS, Layer, Level
from owl_fast.models.vision import VisionLayer
from owl_fast.training.layer_costs import Bytes, LayerCost, abstractor_cost, llama_cost, vision_cost
from owl_fast.training.optimizers import OPTIMIZERS
from owl_fast.training.stages import Stage

Part = Literal["vision", "abstractor", "language"]
PARTS: tuple[Part, ...] = get_args(Part)
WHOLE: Level = "whole"
Levels = dict[Part, tuple[Level, ...]]


class Sizes(Protocol):
    """What so many samples take together."""

    def times(self, samples: int) -> MicroBatch: ...


@dataclass(frozen=True)
class MicroBatch:
    """rows: of the language model, pictures' included; labelled: those that are learned."""

    samples: int
    rows: int
    labelled: int
    pictures: int

    def times(self, samples: int) -> MicroBatch:
        """As many samples of the same kind."""
        return MicroBatch(
            samples,
            -(-self.rows * samples // self.samples),
            -(-self.labelled * samples // self.samples),
            -(-self.pictures * samples // self.samples),
        )


@dataclass(frozen=True)
class Setup:
    """dtype: of frozen dense weights; precision: as in TrainSettings; optimizer: a name in OPTIMIZERS."""

    config: OwlConfig
    stage: Stage
    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    precision: Literal["fp32", "bf16"] = "bf16"
    optimizer: str = "adamw"

    def skeleton(self) -> Owl:
        """The model in the stage's state without memory."""
        model = empty_model(self.config).to(self.dtype)
        self.stage.apply(model)
        return model


@dataclass(frozen=True)
class Plan:
    """parts: bytes by name; not all of them are there at the same moment. total: the most there is at a time.

    levels: what each layer keeps. flops: operations that a micro-batch computes a second time.
    """

    batch: MicroBatch
    levels: Levels
    parts: dict[str, int]
    total: int
    flops: float

    def table(self) -> str:
        """Lines of name and GB, and the levels below."""
        lines = [f"{name:<28}{_gb(size):>12}" for name, size in self.parts.items() if size]
        lines.append(f"{'at most at a time':<28}{_gb(self.total):>12}")
        b = self.batch
        lines.append(
            f"micro-batch: {b.samples} samples, {b.rows} rows, {b.labelled} learned, {b.pictures} pictures"
        )
        lines += [f"{part} layers keep: {_counts(levels)}" for part, levels in self.levels.items() if levels]
        return "\n".join(lines)


class Planner:
    """Plans for a setup; the model's skeleton is made once."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.model = setup, setup.skeleton()
        model = self.model
        self.layers = _stacks(model)
        self.trains: dict[Part, bool] = {
            "vision": _trains(model.vision_model),
            "abstractor": _trains(model.abstractor),
            "language": _trains(model.language_model),
        }
        frozen = [p for p in model.parameters() if not p.requires_grad]
        packed = [b for m in model.modules() if isinstance(m, PackedWeight) for b in m.buffers()]
        self.frozen = sum(t.nbytes for t in (*frozen, *packed))
        self.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.states, self.step_bytes = OPTIMIZERS[setup.optimizer].memory(trained)

    def plan(self, batch: MicroBatch, levels: Levels | None = None) -> Plan:
        """levels: None for layers that compute nothing again."""
        levels, config = levels or self.levels(lambda part: "whole"), self.setup.config
        size, vision, count = self._sizes("language"), self._sizes("vision"), self.trained
        costs = self._costs(batch)
        kept = {part: sum(costs[part].kept[level] for level in levels[part]) for part in costs}
        again = {part: max((costs[part].again[level] for level in levels[part]), default=0) for part in costs}
        passing = {
            part: max((cost.backward[level] for level in levels[part]), default=0) + self._blocks(part, batch)
            for part, cost in costs.items()
        }
        width, seen = config.vision.hidden_size, batch.pictures * (1 + config.vision.num_patches)
        pixels = batch.pictures * 3 * config.vision.image_size**2 * 4 + seen * width * vision.stream
        stream = batch.rows * config.llama.hidden_size * size.stream
        loss = self._loss(batch, size)
        parts = {
            "weights, frozen": self.frozen,
            "weights that train": 4 * count,
            "gradients": 4 * count,
            f"states of {self.setup.optimizer}": self.states,
            "pictures and features": pixels,
            **{f"activations, {part}": kept[part] for part in costs},
            "one layer, computed again": max(again.values(), default=0),
            "gradients on their way": max(passing.values(), default=0),
            "loss": loss,
        }
        base = sum(list(parts.values())[:4]) + pixels
        left = sum(kept.values()) + stream  # the last norm's input
        moments = [base + left + stream + loss, base + self.step_bytes]
        if "vision" not in costs:
            tower = 4 * width + config.vision.intermediate_size
            moments.append(base + seen * tower * size.product)
        for part in reversed(costs):
            moments.append(base + left + again[part] + passing[part])
            left -= kept[part]
        flops = sum(costs[part].flops[level] for part in costs for level in levels[part])
        return Plan(batch, levels, parts, max(moments), flops)

    def levels(self, choose: Callable[[Part], Level]) -> Levels:
        """One level for all layers of a part; parts through which no gradient goes have none."""
        return {part: (choose(part),) * len(self.layers[part]) for part in PARTS if self._recorded(part)}

    def fit(self, batch: MicroBatch, budget: int) -> Plan:
        """The plan that computes the least again and takes at most `budget` bytes.

        UnsupportedError if even layers that keep their inputs alone take more.
        """
        levels = self.levels(lambda part: "input")
        plan = self.plan(batch, levels)
        if plan.total > budget:
            raise UnsupportedError(
                f"a micro-batch of {batch.samples} samples takes {_gb(plan.total)}, and {_gb(budget)} are "
                "there; give a smaller micro-batch, int8 or int4 weights, or another device"
            )
        for part, lower, upper in self._steps(batch):
            while lower in levels[part]:
                place = levels[part].index(lower)
                tried = {**levels, part: (*levels[part][:place], upper, *levels[part][place + 1 :])}
                better = self.plan(batch, tried)
                if better.total > budget:
                    break
                levels, plan = tried, better
        return plan

    def largest(self, sample: Sizes, budget: int, most: int = 4096) -> Plan:
        """The plan of the largest micro-batch of such samples that fits; UnsupportedError if not one does."""
        low, high = 1, 1
        self.fit(sample.times(1), budget)
        while high < most and self._least(sample.times(high * 2)) <= budget:
            high *= 2
        low, high = high, min(2 * high, most)
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._least(sample.times(middle)) <= budget else (low, middle)
        return self.fit(sample.times(low), budget)

    def _least(self, batch: MicroBatch) -> int:
        return self.plan(batch, self.levels(lambda part: "input")).total

    def _steps(self, batch: MicroBatch) -> list[tuple[Part, Level, Level]]:
        """Changes of a layer's level that save time, those that save most for their bytes first."""
        steps = [
            (rate, part, lower, upper)
            for part, cost in self._costs(batch).items()
            for rate, lower, upper in _hull(cost)
        ]
        return [step[1:] for step in sorted(steps, key=lambda step: -step[0])]

    def _costs(self, batch: MicroBatch) -> dict[Part, LayerCost]:
        """Of one layer of every part through which gradients go, in the order of the forward pass."""
        config, length = self.setup.config, batch.rows // batch.samples
        found: dict[Part, LayerCost] = {}
        for part in self.levels(lambda part: "whole"):
            layer, size = self.layers[part][0], self._sizes(part)
            if isinstance(layer, VisionLayer):
                found[part] = vision_cost(config, batch.pictures, size)
            elif isinstance(layer, AbstractorLayer):
                found[part] = abstractor_cost(config, batch.pictures, size)
            elif isinstance(layer, LlamaLayer):
                found[part] = llama_cost(layer, config, batch.rows, length, size)
        return found

    def _recorded(self, part: Part) -> bool:
        """Gradients go through what trains, and through what comes behind it."""
        behind = PARTS[: PARTS.index(part) + 1]
        return any(self.trains[earlier] for earlier in behind)

    def _sizes(self, part: Part) -> Bytes:
        half = self.setup.precision == "bf16" or self.setup.dtype == torch.bfloat16
        weights = next(self.layers[part].parameters()) if part != "language" else self._embedding()
        gpu = self.setup.device.type == "cuda"
        return Bytes(stream=weights.dtype.itemsize, product=2 if half else 4, gpu=gpu)

    def _blocks(self, part: Part, batch: MicroBatch) -> int:
        """What norms and activations take in backward, block by block, where no kernel has their gradient."""
        config = self.setup.config
        if self.setup.device.type == "cuda":
            return 0
        if part == "vision":
            seen = batch.pictures * (1 + config.vision.num_patches)
            return ops.backward_bytes(seen * config.vision.intermediate_size)
        if part == "abstractor":
            seen = batch.pictures * (config.num_query_tokens + 1 + config.vision.num_patches)
            return ops.backward_bytes(seen * config.abstractor.hidden_size)
        if native.library() is None:
            return ops.backward_bytes(2 * batch.rows * config.llama.intermediate_size)
        norms = any(p.requires_grad for p in self.model.language_model.model.norm.parameters())
        return ops.backward_bytes(norms * batch.rows * config.llama.hidden_size)

    def _embedding(self) -> nn.Parameter:
        return self.model.language_model.model.embed_tokens.weight

    def _loss(self, batch: MicroBatch, size: Bytes) -> int:
        llama = self.setup.config.llama
        packed = isinstance(self.model.language_model.lm_head.weight, PackedWeight)
        sizes = llama.vocab_size, llama.hidden_size, size.product
        work = ops.loss_bytes(batch.labelled, *sizes, packed, size.gpu)
        return work + batch.labelled * llama.hidden_size * (size.stream + size.product)


def apply(model: Owl, levels: Levels) -> None:
    """Let every layer of the model keep what the levels say; parts that are not named keep everything."""
    for part, stack in _stacks(model).items():
        for layer, level in zip(stack, levels.get(part, (WHOLE,) * len(stack)), strict=True):
            assert isinstance(layer, Layer)
            layer.level = level


def _stacks(model: Owl) -> dict[Part, nn.ModuleList]:
    return {
        "vision": model.vision_model.encoder.layers,
        "abstractor": model.abstractor.encoder.layers,
        "language": model.language_model.model.layers,
    }


def _hull(cost: LayerCost) -> list[tuple[float, Level, Level]]:
    """(operations saved by a byte, from, to), less and less, from the level that keeps least to "whole"."""
    steps: list[tuple[float, Level, Level]] = []
    here = LEVELS[-1]
    while True:
        rates = [
            ((cost.flops[here] - cost.flops[level]) / (cost.kept[level] - cost.kept[here]), level)
            for level in LEVELS
            if cost.kept[level] > cost.kept[here] and cost.flops[level] < cost.flops[here]
        ]
        if not rates:
            return steps
        rate, best = max(rates, key=lambda found: found[0])
        steps.append((rate, here, best))
        here = best


def _trains(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB"


def _counts(levels: Sequence[Level]) -> str:
    return ", ".join(f"{levels.count(level)} {level}" for level in LEVELS if level in levels)
