"""The training loop: draw, accumulate, check, step, record, save.

Every update is a pure function of (weights, optimizer state, seed, step): the samples are drawn by DrawPlan
and the random numbers are seeded anew for each micro-batch, so a resumed run equals an uninterrupted one. An
update that is interrupted is dropped and done again after resuming; no accumulated gradient is ever saved.
Under torch.distributed the processes share each update; the first one writes metrics and snapshots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from owl_fast.errors import CheckpointError, DataError, DivergedError, StoppedError, UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training.features import FeatureCache
from owl_fast.training.objective import TokenLoss
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
from owl_fast.training.progress import Progress
from owl_fast.training.randomness import callers_randomness_kept, seed_everything
from owl_fast.training.ranks import Ranks
from owl_fast.training.read_ahead import read_batches
from owl_fast.training.run_folder import METRICS, RunFolder
from owl_fast.training.snapshots import load_snapshot, newest_snapshot
from owl_fast.training.sources import DrawPlan, Source
from owl_fast.training.stages import Stage
from owl_fast.training.stopping import Stop, StopRequested
from owl_fast.training.updates import Encode, UpdateReader

MAX_SKIPS, SKIP_WINDOW = 3, 100  # a run stops at the fourth non-finite update among 100

Evaluate = Callable[[Owl, int], dict[str, Any]]
BuildOptimizer = Callable[[Mapping[str, nn.Parameter], OptimizerSettings], torch.optim.Optimizer]


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer updates; batch: samples per update; micro_batch: samples per forward pass (None: all).

    save_every, eval_every: updates between snapshots and evaluations, 0 for none. keep: snapshots kept.
    workers: reader processes, 0 to read in this one; reader_timeout: seconds they may take for an update.
    precision: "bf16" computes under autocast; weights and optimizer stay in float32.
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
    reader_timeout: float = 300.0
    precision: Literal["fp32", "bf16"] = "fp32"
    progress: bool = True


class Accumulated(NamedTuple):
    """An update's gradient: mean loss and norm, labelled tokens and rows of all ranks.

    suspects: the records of this rank's micro-batches whose loss is not finite, or of all of them.
    """

    loss: float
    norm: float
    labelled: int
    rows: int
    suspects: list[str]


class Trainer:
    """Trains the parts of `model` that `stage` names, in place; metrics and snapshots go to out_dir.

    encode turns a source's Sample or Caption into an EncodedSample (packing.encode_sample with its settings
    bound); sources that yield EncodedSample need none. evaluate(model, step) -> numbers for the metrics file,
    called in eval mode without gradients. resume: go on from out_dir's newest snapshot if there is one;
    otherwise a folder with snapshots is refused. data_changed_ok: resume although the sources describe
    themselves otherwise than when the run began. optimizer builds another one than AdamW; its groups carry
    the "factor" that set_learning_rate multiplies in. features: of a frozen vision tower, on disk.
    stop: asks the run to end (Stop.on_signals).

    The run folder is locked until close(), an error, or the end of this object (LockedError elsewhere).
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
        data_changed_ok: bool = False,
        optimizer: BuildOptimizer = build_adamw,
        features: FeatureCache | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.model, self.stage, self.settings = model, stage, settings
        self.out_dir, self.evaluate, self.stop = Path(out_dir), evaluate, stop or Stop()
        self.features = features
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
        self.skips = 0  # all of them
        self.pending: dict[str, Any] | None = None  # metrics of an update that is not evaluated yet
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self.folder = self.ranks.alone("opening the run folder", self._open_folder)  # None but on the first
        try:
            self._resume(resume, data_changed_ok)
        except BaseException:
            self.close()
            raise
        self._saved = self._mark  # what the newest snapshot holds
        self.objective = self.ranks.share(TokenLoss(model))

    def run(self, until: int | None = None) -> dict[str, Any]:
        """Train up to update `until` (default: all of settings.steps) and return the last update's metrics.

        DataError: a source yields something unusable. DivergedError: too many updates were not finite.
        ReaderError, RankError: another process is gone. DiskError: there is no room when the run begins, or
        its last snapshot could not be written. StoppedError: a signal came, and the state was saved.
        """
        end = self.settings.steps if until is None else min(until, self.settings.steps)
        try:
            self.ranks.alone("looking for room on the disk", self._check_room)
            with callers_randomness_kept(self.model.device), self.ranks.named():
                metrics = self._train(end)
                self._check_stop()
            if self.folder is not None and self.step == self.settings.steps:
                self.folder.check_saved()
        except StopRequested:
            self._end_stopped()
        except BaseException:
            self.close()
            raise
        return metrics

    def close(self) -> None:
        """Let other processes into the run folder."""
        if self.folder is not None:
            self.folder.close()

    def _train(self, end: int) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if self.pending is not None:
            metrics = self._finish_step(self.pending)
        settings, reader = self.settings, self.reader
        numbers = range(reader.of_update(self.step).start, reader.of_update(end).start)
        batches = read_batches(reader, numbers, settings.workers, settings.reader_timeout)
        show = settings.progress and self.ranks.leads
        with closing(batches), Progress(self.step, end, self.model.device, show) as progress:
            while self.step < end:
                self.model.train()
                try:
                    self.pending = self.update(progress.counted(islice(batches, reader.per_update)))
                finally:
                    self.model.eval()
                metrics = self._finish_step(self.pending)
                progress.update(metrics)
        return metrics

    def _finish_step(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Evaluate, record and save what is due after an update."""
        metrics = metrics | self._evaluation()
        self.pending = None
        if self.folder is not None:
            self.folder.record(metrics)
        self._check_skips(metrics)
        if self._due(self.settings.save_every):
            self.save()
        return metrics

    def update(self, batches: Iterable[TrainingBatch]) -> dict[str, Any]:
        """One optimizer update over micro-batches, its loss normalised by the labelled tokens of all of them.

        A non-finite loss or gradient norm leaves weights and optimizer untouched.
        """
        begin = time.perf_counter()
        lr = learning_rate(self.step, self.settings.steps, self.settings.optimizer)
        found = self.accumulate(batches)
        finite = math.isfinite(found.loss) and math.isfinite(found.norm)
        if finite:
            self._clip(found.norm)
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        metrics: dict[str, Any] = {
            "step": self.step,
            "loss": found.loss if finite else None,
            "grad_norm": found.norm if finite else None,
            "lr": lr,
            "labelled": found.labelled,
            "rows": found.rows,
            "seconds": round(time.perf_counter() - begin, 4),
        }
        if not finite:
            metrics["skipped"] = self.ranks.gather(found.suspects)
            self.skipped.append(self.step)
            self.skips += 1
        return metrics

    def accumulate(self, batches: Iterable[TrainingBatch]) -> Accumulated:
        """Leave the gradient of the update's loss in .grad, and say what it is of.

        batches: reader.per_update of them. StopRequested between two.
        """
        device, ranks = self.model.device, self.ranks
        losses: list[Tensor] = []
        records: list[tuple[str, ...]] = []
        labelled = rows = 0
        waiting = iter(batches)
        for left in reversed(range(self.reader.per_update)):
            batch = self._next(waiting, left)
            seed_everything(self.settings.seed, "dropout", self.step, ranks.rank, left)
            with ranks.apart(self.objective) if left else nullcontext():
                with self.autocast():
                    batch = batch if self.features is None else self.features.fill(self.model, batch)
                    loss = self.objective(batch.to(device))
                if not loss.requires_grad:
                    raise DataError(
                        f"{batch.records[0]}: no trained parameter touches this micro-batch; "
                        f"{self.stage.name} trains {', '.join(self.stage.prefixes)} and needs pictures"
                    )
                torch.autograd.backward(loss)
            losses.append(loss.detach())
            records.append(batch.records)
            labelled, rows = labelled + batch.labelled, rows + batch.packed.bounds[-1]
        values = torch.stack(losses).tolist()
        total, labels, length = ranks.sum(sum(values), labelled, rows)
        # The sum became a mean over the ranks.
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, ranks.size / labels)
        norm = gradient_norm(list(self.parameters.values())).item()
        odd = [names for value, names in zip(values, records, strict=True) if not math.isfinite(value)]
        suspects = [name for names in (odd or records) for name in names]
        return Accumulated(total / labels, norm, int(labels), int(length), suspects)

    def _next(self, batches: Iterator[TrainingBatch], left: int) -> TrainingBatch:
        """The next micro-batch of the update, with `left` behind it; StopRequested on all ranks at once."""
        if self.ranks.size == 1:
            with self.stop.interruptible():
                return next(batches)
        if self.reader.per_update - left <= self.reader.common:
            self._check_stop()
        return next(batches)

    def _check_stop(self) -> None:
        """StopRequested on all ranks if any of them was asked to stop."""
        if any(self.ranks.sum(self.stop.signal is not None)):
            raise StopRequested

    def save(self) -> None:
        """Write a snapshot of this moment; DivergedError rather than one with a non-finite value.

        A disk that does not take it is complained of in the log; DiskError ends run() if it was the last.
        """
        tensors = {
            "model": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
        }
        for group in tensors.values():
            for name, tensor in group.items():
                if not torch.isfinite(tensor).all():
                    raise DivergedError(
                        f"{name} is not finite after update {self.step}; no snapshot was written. Started "
                        "again, the run goes on from its newest one; a lower learning rate may help"
                    )
        folder = self.folder
        saved = self.ranks.alone("saving", lambda: folder and folder.save(self.step, tensors, self._state()))
        if saved:
            self._saved = self._mark

    def _end_stopped(self) -> NoReturn:
        """Save what is not saved yet, and say where the run will go on."""
        name = Signals(self.stop.signal or SIGTERM).name  # the signal may have reached another rank alone
        self.optimizer.zero_grad()
        try:
            if self.settings.save_every and (self.ranks.size > 1 or self._saved != self._mark):
                self.save()
                if self.folder is not None:
                    self.folder.check_saved()
        finally:
            self.close()
        kept = (
            "started again, it goes on from there"
            if self.settings.save_every
            else "nothing was saved: snapshots are off"
        )
        raise StoppedError(
            f"{name} ended the run after update {self.step} of {self.settings.steps}; {kept}",
            self.stop.signal or SIGTERM,
        )

    @property
    def _mark(self) -> tuple[int, bool]:
        return self.step, self.pending is not None

    def _evaluation(self) -> dict[str, Any]:
        """The evaluation's numbers, when one is due."""
        evaluate = self.evaluate
        if evaluate is None or not self._due(self.settings.eval_every):
            return {}

        def work() -> dict[str, Any]:
            seed_everything(self.settings.seed, "evaluation", self.step)
            with torch.no_grad():
                return evaluate(self.model, self.step)

        return self.ranks.alone("evaluating", work) or {}

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.settings.steps)

    def _clip(self, norm: float) -> None:
        limit = self.settings.optimizer.clip
        if limit is not None:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, torch.tensor(norm))

    def _check_skips(self, metrics: dict[str, Any]) -> None:
        self.skipped = [step for step in self.skipped if step > self.step - SKIP_WINDOW]
        if len(self.skipped) > MAX_SKIPS:
            raise DivergedError(
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

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of forward passes."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, self.autocast_dtype)

    def _open_folder(self) -> RunFolder:
        return RunFolder(self.out_dir, self.settings.keep)

    def _check_room(self) -> None:
        if self.settings.save_every and self.folder is not None:
            state = optimizer_tensors(self.optimizer, self.parameters).values()
            weights = sum(parameter.nbytes for parameter in self.parameters.values())
            # Before the first update the optimizer has no state; Adam's takes two numbers for each weight.
            self.folder.check_room(weights + (sum(tensor.nbytes for tensor in state) or 2 * weights))

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skips": self.skips,
            "pending": self.pending,
            "order": {
                "seed": self.settings.seed,
                "batch": self.settings.batch,
                "sources": [source.describe() for source in self.plan.sources],
            },
        }

    def _resume(self, wanted: bool, data_changed_ok: bool) -> None:
        path = newest_snapshot(self.out_dir)
        if path is not None and not wanted:
            raise UnsupportedError(f"{path} is there already; resume it, or give another folder")
        if path is not None:
            self._load(path, data_changed_ok)
        self.ranks.check_equal(f"begins after update {self.step}")  # also: nobody writes before all have read
        if self.folder is not None:
            self.folder.open_log(self.step - (self.pending is not None))

    def _load(self, path: Path, data_changed_ok: bool) -> None:
        tensors, state = load_snapshot(path)
        for key, came in self._state()["order"].items():
            if state["order"][key] != came and not (key == "sources" and data_changed_ok):
                raise CheckpointError(
                    f"{path}: made with {key} {state['order'][key]}, now it is {came}; a run resumes only on "
                    "the data it began with" + ", unless data_changed_ok is set" * (key == "sources")
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
        self.step, self.skipped, self.skips = state["step"], state["skipped"], state.get("skips", 0)
        self.pending = state.get("pending")
