"""The training command under Ray Train: each worker runs the same train(), torch's DDP makes one run of them.

    pip install -c constraints.txt '.[ray]'
    python examples/ray_train.py --workers 2 -- --stage 2 --model owl_fast/assets/owl-nano \\
        --data examples/brief.jsonl --out runs/brief --max-steps 20 --batch 8

What comes after -- are the arguments of `python -m owl_fast.train`, their files seen by all workers. A worker
that dies is replaced, with the others, up to twice; the run then goes on from its newest snapshot.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from owl_fast.train.arguments import read_arguments
from owl_fast.train.run import train


def work(options: dict[str, Any]) -> None:
    """One worker; Ray has joined it with the others by now."""
    os.chdir(options["folder"])
    train(read_arguments([*options["arguments"], "--resume", "auto"]))


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    options, arguments = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    out = Path(read_arguments(arguments).out).resolve()
    TorchTrainer(
        work,
        train_loop_config={"arguments": arguments, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if options.gpu else "gloo", timeout_s=60),
        run_config=RunConfig(storage_path=str(out / "ray"), failure_config=FailureConfig(max_failures=2)),
    ).fit()
    print(f"trained: {out / 'final'}")


if __name__ == "__main__":
    main()
