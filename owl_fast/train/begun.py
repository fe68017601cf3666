"""A run that goes on does so with the settings it began with."""

from __future__ import annotations

import argparse
from pathlib import Path

from owl_fast.errors import ParameterError
from owl_fast.settings import as_toml, read_toml
from owl_fast.training.snapshots import newest_snapshot

SETTINGS = "config.toml"
# What the weights depend on besides the data, whose files the snapshot knows.
COURSE = (
    *("stage", "model", "quant", "dtype", "full", "no_train_abstractor"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
    *("max_length", "template", "no_crops", "max_steps", "batch", "micro_batch"),
    *("optimizer", "lr", "tower_lr_factor", "warmup", "weight_decay", "clip", "seed"),
)
FOUND = ("batch", "micro_batch")  # worked out when the run began, if nothing was said
AFTERWARDS = ("print_config", "plan", "resume")  # no settings of the run


def go_on(args: argparse.Namespace) -> None:
    """Take over what the run in --out worked out; ParameterError if anything of its course is otherwise."""
    file = Path(args.out) / SETTINGS
    if args.resume != "auto" or newest_snapshot(Path(args.out)) is None or not file.exists():
        return
    begun = read_toml(file)
    for name in COURSE:
        was, now = begun.get(name.replace("_", "-")), getattr(args, name)
        if name in FOUND and now is None:
            setattr(args, name, was)
        elif was != (list(now) if isinstance(now, tuple) else now):
            flag = "--" + name.replace("_", "-")
            raise ParameterError(
                f"{flag} is {now}, and the run began with {was}; it goes on as it began: "
                f"python -m owl_fast.train --config {file} --resume auto"
            )


def write_settings(args: argparse.Namespace) -> None:
    """config.toml, which --config takes."""
    told = {name: value for name, value in vars(args).items() if name not in AFTERWARDS}
    (Path(args.out) / SETTINGS).write_text(as_toml(told), encoding="utf-8")
