"""What the actions share: the datasets, and what a run would do with each of their samples."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

from owl_fast.checkpoints import open_source
from owl_fast.command_line import data_options, model_options
from owl_fast.engine.opening import BUNDLED
from owl_fast.errors import ParameterError
from owl_fast.hub import local_path
from owl_fast.images import load_image
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.datasets import Dataset, ReadOptions, open_datasets
from owl_fast.training.packing import EncodedSample, encode_sample
from owl_fast.training.sample import Caption, Sample


@dataclass(frozen=True)
class Task:
    """max_length: tokens predicted at most; image_rows: positions of a picture."""

    datasets: list[Dataset]
    tokenizer: Tokenizer
    image_rows: int
    max_length: int
    pixels: bool
    workers: int | None
    progress: bool

    def use(self, sample: Sample | Caption) -> EncodedSample:
        """Tokenize it and look at its pictures, as training does."""
        look: Any = partial(load_image, pixels=self.pixels)
        return encode_sample(
            sample, self.tokenizer, self.image_rows, self.max_length, look, cut_answers=False
        )


def open_task(args: argparse.Namespace) -> Task:
    if args.workers is not None and args.workers < 0:
        raise ParameterError(f"--workers {args.workers}: wanted 0 or more")
    source = open_source(BUNDLED if args.model is None else local_path(args.model), **model_options(args))
    context = source.config.llama.max_position_embeddings
    length = context if args.max_length is None else args.max_length
    if not 0 < length <= context:
        raise ParameterError(f"--max-length {length}: wanted 1 to {context}, the model's context")
    options = ReadOptions(**data_options(args), progress=not args.plain)
    return Task(
        open_datasets(args.specs, options),
        source.tokenizer(),
        source.config.image_rows,
        length,
        pixels=not args.headers_only,
        workers=args.workers,
        progress=not args.plain,
    )
