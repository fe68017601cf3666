"""Stage 2 under Ray Train: every worker runs the same Trainer, and torch's DDP makes one run of them.

    pip install 'owl-fast[ray]'
    python examples/ray_train.py OUT [--workers N] [--gpu] [--steps N]

OUT is a folder that all workers see. A worker that dies is replaced, with the others, up to twice; like any
other run this one then goes on from its newest snapshot.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from owl_fast.checkpoints import load_model
from owl_fast.engine.opening import BUNDLED
from owl_fast.images import ImageProcessor
from owl_fast.tokenizer import Tokenizer
from owl_fast.training import OptimizerSettings, Sample, Source, Trainer, TrainSettings, encode_sample, stage2

HERE = Path(__file__).resolve().parent
ANSWERS = {
    "scene.png": "A red star and other shapes.",
    "sign.png": "A sign with a word on it.",
    "two.png": "Two shapes side by side.",
}


def samples() -> list[Sample]:
    """What to learn; real runs take the readers of owl_fast.training."""
    made = []
    for name, answer in ANSWERS.items():
        question = [{"type": "image", "image": 0}, {"type": "text", "text": "What do you see?"}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made.append(Sample(messages, [HERE / name], name))
    return made


def train(options: dict[str, Any]) -> None:
    """One worker; Ray has joined it with the others by now."""
    model = load_model(BUNDLED).to("cuda" if options["gpu"] else "cpu")
    processor = ImageProcessor.from_folder(BUNDLED)
    encode = partial(
        encode_sample,
        tokenizer=Tokenizer.from_file(BUNDLED / "tokenizer.model"),
        image_rows=model.config.image_rows,
        max_length=512,
        look=partial(processor, training=True),
    )
    settings = TrainSettings(
        steps=options["steps"],
        batch=8,
        micro_batch=2,
        optimizer=OptimizerSettings(lr=1e-3, warmup=2),
        save_every=5,
        progress=False,
    )
    source = Source.of("examples", samples())
    Trainer(model, stage2(), [source], settings, options["out"], encode=encode).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    out = options.out.resolve()
    TorchTrainer(
        train,
        train_loop_config={"out": str(out), "steps": options.steps, "gpu": options.gpu},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if options.gpu else "gloo", timeout_s=60),
        run_config=RunConfig(storage_path=str(out / "ray"), failure_config=FailureConfig(max_failures=2)),
    ).fit()
    print(f"trained: {out}")


if __name__ == "__main__":
    main()
