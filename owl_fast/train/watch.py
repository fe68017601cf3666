"""What a person sees of a run: held-out loss, answers, curves, event files."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from owl_fast.errors import OwlError, UnsupportedError
from owl_fast.images import ImageProcessor
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer
from owl_fast.train.samples import Question, Samples, questions
from owl_fast.training.datasets import Dataset
from owl_fast.training.objective import token_loss
from owl_fast.training.packing import EncodedSample, pack
from owl_fast.training.run_folder import METRICS
from owl_fast.training.sample import Caption, Sample

PLOTS, EVENTS = "plots", "tensorboard"
MOST_HELD_OUT = 256  # samples whose loss is measured, spread over the data

Encode = Callable[[Sample | Caption], EncodedSample]
_log = logging.getLogger("owl_fast")


class Watch:
    """evaluate() is the trainer's; finish() draws what came after the last evaluation."""

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(
        self,
        out: Path,
        args: argparse.Namespace,
        data: Sequence[Dataset],
        held_out: bool,
        encode: Encode,
        tokenizer: Tokenizer,
        processor: ImageProcessor,
    ) -> None:
        self.out, self.encode, self.data, self.held_out = out, encode, data, held_out
        self.questions = (args.samples, args.max_length)
        self.parts = (tokenizer, processor)
        self.samples: Samples | None = None
        self.events = _events(out / EVENTS) if args.tensorboard else None

    def evaluate(self, model: Owl, step: int) -> dict[str, Any]:
        found = {"eval_loss": self._loss(model)} if self.held_out else {}
        if self.samples is None:
            self.samples = Samples(self.out, self._questions(model.config.image_rows), *self.parts)
        with self.autocast():
            self.samples.write(model, step)
        self.finish()
        return found

    def finish(self) -> None:
        """Curves and event files up to now."""
        metrics = self.out / METRICS
        if not metrics.exists():
            return
        try:
            from owl_fast.train.curves import draw_curves, read_points
        except ImportError:
            _log.warning("no curves are drawn without matplotlib: pip install '.[train]' in the checkout")
            return
        draw_curves(metrics, self.out / PLOTS)
        if self.events is not None:
            self.events(read_points(metrics))

    def _questions(self, image_rows: int) -> list[Question]:
        count, length = self.questions
        each = -(-count // len(self.data))
        return list(
            chain(
                *(questions(_spread(d, 4 * each), self.parts[0], image_rows, length, each) for d in self.data)
            )
        )[:count]

    def _loss(self, model: Owl) -> float:
        """Mean loss per labelled token of the held-out data."""
        total, labelled = 0.0, 0
        each = -(-MOST_HELD_OUT // len(self.data))
        for record in chain(*(_spread(data, each) for data in self.data)):
            batch = pack([self.encode(record)], model.config.image_rows).to(model.device)
            with self.autocast():
                total += token_loss(model, batch).item()
            labelled += batch.labelled
        return total / labelled


def _spread(data: Dataset, count: int) -> Iterator[Sample | Caption]:
    """Up to `count` records at equal distances; bad ones are passed over."""
    count = min(count, len(data))
    for number in range(count):
        try:
            yield data[number * len(data) // count]
        except OwlError:
            continue


def _events(folder: Path) -> Callable[[dict[str, list[tuple[int, float]]]], None]:
    """Writes points to TensorBoard's files, each of them once."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UnsupportedError(
            "--tensorboard needs the package tensorboard: pip install '.[tensorboard]' in the checkout"
        ) from None
    written: dict[str, int] = {}
    writer: list[Any] = []

    def write(points: dict[str, list[tuple[int, float]]]) -> None:
        if not writer:
            writer.append(SummaryWriter(str(folder)))
        for name, values in points.items():
            for step, value in values:
                if step > written.get(name, 0):
                    writer[0].add_scalar(name, value, step)
                    written[name] = step
        writer[0].flush()

    return write
