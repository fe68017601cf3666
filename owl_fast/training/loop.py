"""The training loop: draw, accumulate, check, step, record, save.

Every update is a pure function of (weights, optimizer state, seed, step): the samples are drawn by DrawPlan
and dropout's random numbers are seeded anew for each update, so a resumed run equals an uninterrupted one.
Under torch.distributed the processes share each update; the first one writes metrics and snapshots.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from owl_fast.errors import CheckpointError, DataError, OwlError, UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training.features import FeatureCache
from owl_fast.training.objective import token_loss
from owl_fast.training.optimizer import (
    OptimizerSettings,
    build_adamw,
    gradient_norm,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from owl_fast.training.packing import TrainingBatch
from owl_fast.training.ranks import Ranks
from owl_fast.training.snapshots import load_snapshot, newest_snapshot, prune_snapshots, save_snapshot
from owl_fast.training.sources import DrawPlan, Source, derive_seed
from owl_fast.training.stages import Stage
from owl_fast.training.updates import Encode, UpdateReader, read_updates

METRICS = "metrics.jsonl"
MAX_SKIPS, SKIP_WINDOW = 3, 100  # a run stops at the fourth non-finite update among 100

Evaluate = Callable[[Owl, int], dict[str, Any]]
BuildOptimizer = Callable[[Mapping[str, nn.Parameter], OptimizerSettings], torch.optim.Optimizer]


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer updates; batch: samples per update; micro_batch: samples per forward pass (None: all).

    save_every, eval_every: updates between snapshots and evaluations, 0 for none. keep: snapshots kept.
    workers: reader processes, 0 to read in this one. precision: "bf16" computes under autocast; weights and
    optimizer stay in float32.
    """

    steps: int
    batch: int
    micro_batch: int | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    seed: int = 0
    save_every: int = 0
    keep: int = 2
    eval_every: int = 0
    workers: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    progress: bool = True


class Trainer:
    """Trains the parts of `model` that `stage` names, in place; metrics and snapshots go to out_dir.

    encode turns a source's Sample or Caption into an EncodedSample (packing.encode_sample with its settings
    bound); sources that yield EncodedSample need none. evaluate(model, step) -> numbers for the metrics file,
    called in eval mode without gradients. resume: go on from out_dir's newest snapshot if there is one;
    otherwise a folder with snapshots is refused. optimizer builds another one than AdamW; its groups carry
    the "factor" that set_learning_rate multiplies in. features: of a frozen vision tower, on disk.
    """

    def __init__(
        self,
        model: Owl,
        stage: Stage,
        sources: Sequence[Source],
        settings: TrainSettings,
        out_dir: str | Path,
        *,
        encode: Encode | None = None,
        evaluate: Evaluate | None = None,
        resume: bool = True,
        optimizer: BuildOptimizer = build_adamw,
        features: FeatureCache | None = None,
    ) -> None:
        self.model, self.stage, self.settings = model, stage, settings
        self.out_dir, self.evaluate, self.features = Path(out_dir), evaluate, features
        self.ranks = Ranks.current()
        self.plan = DrawPlan(sources, settings.seed)
        self.reader = UpdateReader(
            self.plan,
            settings.batch,
            settings.micro_batch or settings.batch,
            model.config.image_rows,
            encode,
            self.ranks,
        )
        self.parameters = stage.apply(model, settings.seed)
        self.optimizer = optimizer(self.parameters, settings.optimizer)
        self.autocast_dtype = self._autocast_dtype()
        self.step = 0  # updates done
        self.skipped: list[int] = []  # recent updates left out because they were not finite
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._resume(resume)
        self.ranks.wait()  # no snapshot is written before every process has looked for one

    def run(self, until: int | None = None) -> dict[str, Any]:
        """Train up to update `until` (default: all of settings.steps) and return the last update's metrics.

        DataError when a source yields something unusable; OwlError when too many updates were not finite.
        """
        end = self.settings.steps if until is None else min(until, self.settings.steps)
        metrics: dict[str, Any] = {}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        updates = read_updates(self.reader, range(self.step, end), self.settings.workers)
        show = self.settings.progress and self.ranks.leads
        bar = tqdm(total=end, initial=self.step, disable=not show, unit="step")
        with torch.random.fork_rng(devices), bar, (self.out_dir / METRICS).open("a", encoding="utf-8") as log:
            for batches in updates:
                self.model.train()
                metrics = self.update(batches)
                self.model.eval()
                metrics |= self._evaluation()
                if self.ranks.leads:
                    log.write(json.dumps(metrics) + "\n")
                    log.flush()
                self._check_skips(metrics)
                if self._due(self.settings.save_every):
                    self.save()
                bar.update()
                bar.set_postfix(loss=metrics["loss"], lr=metrics["lr"])
        return metrics

    def update(self, batches: Sequence[TrainingBatch]) -> dict[str, Any]:
        """One optimizer update over micro-batches, its loss normalised by the labelled tokens of all of them.

        A non-finite loss or gradient norm leaves weights and optimizer untouched.
        """
        begin = time.perf_counter()
        torch.manual_seed(derive_seed(self.settings.seed, "dropout", self.step, self.ranks.rank))
        lr = learning_rate(self.step, self.settings.steps, self.settings.optimizer)
        loss, norm = self.accumulate(batches)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self._clip(norm)
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        labelled, rows = self.ranks.sum(
            sum(batch.labelled for batch in batches),
            sum(batch.packed.bounds[-1] for batch in batches),
            device=self.model.device,
        )
        metrics: dict[str, Any] = {
            "step": self.step,
            "loss": loss if finite else None,
            "grad_norm": norm if finite else None,
            "lr": lr,
            "labelled": int(labelled),
            "rows": int(rows),
            "seconds": round(time.perf_counter() - begin, 4),
        }
        if not finite:
            metrics["skipped"] = self.ranks.gather([name for batch in batches for name in batch.records])
            self.skipped.append(self.step)
        return metrics

    def accumulate(self, batches: Sequence[TrainingBatch]) -> tuple[float, float]:
        """Leave the gradient of the update's loss in .grad; return the loss and the gradient's norm."""
        device, parameters = self.model.device, list(self.parameters.values())
        (labelled,) = self.ranks.sum(sum(batch.labelled for batch in batches), device=device)
        total = torch.zeros((), device=device)
        for batch in batches:
            with self._autocast():
                batch = batch if self.features is None else self.features.fill(self.model, batch)
                loss = token_loss(self.model, batch.to(device)) / labelled
            if not loss.requires_grad:
                raise DataError(
                    f"{batch.records[0]}: no trained parameter touches this micro-batch; "
                    f"{self.stage.name} trains {', '.join(self.stage.prefixes)} and needs pictures"
                )
            torch.autograd.backward(loss)
            total += loss.detach()
        self.ranks.sum_gradients_(parameters)
        (loss_sum,) = self.ranks.sum(total.item(), device=device)
        return loss_sum, gradient_norm(parameters).item()

    def save(self) -> None:
        """Write a snapshot of this moment; OwlError rather than one with a non-finite weight."""
        for name, parameter in self.parameters.items():
            if not torch.isfinite(parameter).all():
                raise OwlError(f"{name} is not finite after update {self.step}; no snapshot was written")
        tensors = {
            "model": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
        }
        if self.ranks.leads:
            save_snapshot(self.out_dir, self.step, tensors, self._state())
            prune_snapshots(self.out_dir, self.settings.keep)
        self.ranks.wait()

    def _evaluation(self) -> dict[str, Any]:
        """The evaluation's numbers, when one is due."""
        if self.evaluate is None or not self._due(self.settings.eval_every):
            return {}
        if not self.ranks.leads:
            return {}
        with torch.no_grad():
            return self.evaluate(self.model, self.step)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.settings.steps)

    def _clip(self, norm: float) -> None:
        limit = self.settings.optimizer.clip
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, torch.tensor(norm))

    def _check_skips(self, metrics: dict[str, Any]) -> None:
        self.skipped = [step for step in self.skipped if step > self.step - SKIP_WINDOW]
        if len(self.skipped) > MAX_SKIPS:
            raise OwlError(
                f"{len(self.skipped)} of the last {SKIP_WINDOW} updates had a non-finite loss or gradient "
                f"(updates {self.skipped}, the last with {metrics['skipped'][0]}, ...); "
                f"lower the learning rate, lengthen the warm-up, or look at the records named in {METRICS}"
            )

    def _autocast_dtype(self) -> torch.dtype | None:
        dtypes = {p.dtype for p in self.model.parameters()}
        if torch.float16 in dtypes:
            raise UnsupportedError("training in float16 is not supported; load the model in bfloat16")
        wanted = self.settings.precision == "bf16" or torch.bfloat16 in dtypes
        return torch.bfloat16 if wanted else None

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, self.autocast_dtype)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "skipped": self.skipped,
            "order": {
                "seed": self.settings.seed,
                "batch": self.settings.batch,
                "sources": [source.describe() for source in self.plan.sources],
            },
        }

    def _resume(self, wanted: bool) -> None:
        path = newest_snapshot(self.out_dir)
        if path is not None and not wanted:
            raise UnsupportedError(f"{path} is there already; resume it, or give another folder")
        if path is not None:
            self._load(path)
        if self.ranks.leads:
            _cut_metrics(self.out_dir / METRICS, self.step)

    def _load(self, path: Path) -> None:
        tensors, state = load_snapshot(path)
        for key, came in self._state()["order"].items():
            if state["order"][key] != came:
                raise CheckpointError(
                    f"{path}: made with {key} {state['order'][key]}, now it is {came}; "
                    "a run resumes only on the data it began with"
                )
        saved = {name: tuple(tensor.shape) for name, tensor in tensors["model"].items()}
        here = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        if saved != here:
            odd = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))[0]
            raise CheckpointError(
                f"{path}: {odd} is {saved.get(odd)} there and {here.get(odd)} in this run; "
                "the snapshot is of another model or stage"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors["model"][name])
        load_optimizer_tensors(self.optimizer, self.parameters, tensors["optimizer"])
        self.step, self.skipped = state["step"], state["skipped"]


def _cut_metrics(path: Path, step: int) -> None:
    """Drop lines past the snapshot that the run goes on from, and a line a crash cut short."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def _whole_lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line
