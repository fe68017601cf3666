"""The bundled model in stage 2, killed and stopped: bit-equal, as the small one of the other tests is."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from owl_fast.checkpoints import load_model
from owl_fast.command_line import exit_code
from owl_fast.engine.opening import BUNDLED
from owl_fast.errors import OwlError
from owl_fast.images import ImageProcessor
from owl_fast.tokenizer import Tokenizer
from owl_fast.training import OptimizerSettings, Sample, Source, Trainer, TrainSettings, encode_sample, stage2
from owl_fast.training.stopping import Stop
from tests.training.survivor import assert_same_run, kill, start, wait_somewhere

PICTURES = ("scene.png", "sign.png", "two.png")
FOLDER = Path(__file__).resolve().parents[2] / "examples"
SETTINGS = TrainSettings(
    steps=24,
    batch=4,
    micro_batch=2,
    optimizer=OptimizerSettings(lr=1e-3, warmup=2),
    save_every=2,
    workers=2,
    progress=False,
)


@dataclass(frozen=True)
class Nano:
    folder: Path
    settings: TrainSettings = SETTINGS

    def __call__(self) -> None:
        torch.set_num_threads(1)
        os.fsync = lambda descriptor: None
        with Stop.on_signals() as stop:
            try:
                self.trainer(stop).run()
            except OwlError as error:
                sys.exit(exit_code(error))

    def trainer(self, stop: Stop) -> Trainer:
        model = load_model(BUNDLED)
        processor = ImageProcessor.from_folder(BUNDLED)
        encode = partial(
            encode_sample,
            tokenizer=Tokenizer.from_file(BUNDLED / "tokenizer.model"),
            image_rows=model.config.image_rows,
            max_length=256,
            look=lambda picture: processor.augment(picture, random.Random(random.random())),
        )
        source = Source("pictures", sample, size=30)
        return Trainer(model, stage2(), [source], self.settings, self.folder, encode=encode, stop=stop)


def sample(index: int) -> Sample:
    question = [{"type": "image", "image": 0}, {"type": "text", "text": f"What is number {index}?"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"A {index}."}]
    return Sample(messages, [FOLDER / PICTURES[index % 3]], f"picture {index}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_owl_nano_survives(number: signal.Signals, tmp_path: Path) -> None:
    """Ended six times somewhere; the undisturbed run reads in its own process, in which order it likes."""
    rng, folder = random.Random(number), tmp_path / "disturbed"
    for _ in range(6):
        process = start(Nano(folder))
        wait_somewhere(folder, process, rng)
        kill(process, number)
        process.join()
        assert process.exitcode in (0, -number, 128 + number)
    for nano in (Nano(folder), Nano(tmp_path / "whole", replace(SETTINGS, workers=0))):
        process = start(nano)
        process.join()
        assert process.exitcode == 0
    assert_same_run(folder, tmp_path / "whole", upto=24)
