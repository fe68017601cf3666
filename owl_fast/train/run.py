"""One run: model and data are opened and checked, trained and evaluated, and what was trained is written."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from owl_fast.checkpoints import Source as ModelSource
from owl_fast.checkpoints import load_model
from owl_fast.command_line import open_model
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.placement import pick_device, pick_dtype
from owl_fast.errors import ParameterError
from owl_fast.images import ImageProcessor
from owl_fast.lora import LoraConfig
from owl_fast.models.owl import Owl
from owl_fast.settings import as_toml
from owl_fast.tokenizer import Tokenizer
from owl_fast.train.final import FINAL, write_final
from owl_fast.train.memory import plan_of
from owl_fast.train.watch import Watch
from owl_fast.training.adamw8bit import build_adamw8bit
from owl_fast.training.bad_rows import leave_out_bad_rows
from owl_fast.training.datasets import Dataset, ReadOptions, as_sources, open_datasets
from owl_fast.training.loop import Trainer, TrainSettings
from owl_fast.training.memory_plan import apply
from owl_fast.training.muon import build_muon
from owl_fast.training.optimizer import OptimizerSettings, build_adamw
from owl_fast.training.packing import EncodedSample, encode_sample
from owl_fast.training.ranks import joined
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.stages import FULL_LLAMA, STAGE1, VISION, Stage, stage2
from owl_fast.training.stopping import Stop

SETTINGS = "config.toml"
OPTIMIZERS = {"adamw": build_adamw, "adamw8bit": build_adamw8bit, "muon": build_muon}


def train(args: argparse.Namespace) -> Path | None:
    """Train as the arguments say; the folder final/, or None on processes that write nothing.

    args: of arguments.build_parser, with_defaults. OwlError: as Trainer, and whatever cannot be opened.
    """
    stage = stage_of(args)
    source = open_model(args)
    if source.adapter is not None:
        raise ParameterError(
            f"{args.model}: an adapter; merge it first: "
            "Engine.from_pretrained(ADAPTER).save_pretrained(DIR, adapter='default')"
        )
    device = pick_device(args.device)
    tokenizer, processor = source.tokenizer(), source.processor()
    encode = encoder(args, source.config, tokenizer, processor)
    with Stop.on_signals() as stop, joined(device.type) as ranks:
        if ranks.size > 1 and device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        shown = ranks.leads and not args.plain
        data = _datasets(args.data, args, encode, shown)
        held_out = _datasets(args.eval_data, args, encode, shown)
        dtype = pick_dtype(args.dtype, device, source.config)
        plan = plan_of(args, source.config, stage, device, dtype, data, encode)
        if args.plan:
            print(plan.table())
            return None
        model = _load(args, source, dtype, device, shown)
        out = Path(args.out)
        watch = Watch(out, args, held_out or data, bool(held_out), encode, tokenizer, processor)
        trainer = Trainer(
            model,
            stage,
            as_sources(data),
            settings_of(args, plan.batch.samples, dtype, shown),
            out,
            encode=encode,
            evaluate=watch.evaluate,
            resume=args.resume == "auto",
            data_changed_ok=args.data_changed_ok,
            optimizer=OPTIMIZERS[args.optimizer],
            stop=stop,
        )
        apply(model, plan.levels)
        try:
            watch.autocast = trainer.autocast
            if ranks.leads:
                (out / SETTINGS).write_text(as_toml(_told(args)), encoding="utf-8")
            trainer.run()
            if not ranks.leads:
                return None
            watch.finish()
            return write_final(out / FINAL, trainer, source, args.model, dtype, tokenizer, processor)
        finally:
            trainer.close()
            ranks.wait()


def stage_of(args: argparse.Namespace) -> Stage:
    if args.stage == 1:
        return STAGE1
    if args.full:
        return FULL_LLAMA
    targets = args.lora_targets
    chosen = (
        {} if targets is None else {"target_modules": targets[0] if len(targets) == 1 else tuple(targets)}
    )
    lora = LoraConfig(r=args.lora_rank, alpha=args.lora_alpha, dropout=args.lora_dropout, **chosen)
    return stage2(lora, train_abstractor=not args.no_train_abstractor)


def settings_of(
    args: argparse.Namespace, micro_batch: int, dtype: torch.dtype, progress: bool
) -> TrainSettings:
    return TrainSettings(
        steps=args.max_steps,
        batch=args.batch,
        micro_batch=micro_batch,
        optimizer=OptimizerSettings(
            lr=args.lr,
            weight_decay=args.weight_decay,
            warmup=args.warmup,
            clip=args.clip or None,
            factors=tuple((prefix, args.tower_lr_factor) for prefix in VISION),
        ),
        seed=args.seed,
        save_every=args.save_every,
        keep=args.keep,
        eval_every=args.eval_every,
        workers=args.workers,
        precision="fp32" if dtype == torch.float32 else "bf16",
        progress=progress,
    )


def encoder(
    args: argparse.Namespace, config: OwlConfig, tokenizer: Tokenizer, processor: ImageProcessor
) -> Callable[[Sample | Caption], EncodedSample]:
    """Records into token ids and pixels; stage 1 crops pictures at random, seeded for each sample."""
    crops = args.stage == 1 and not args.no_crops
    length = min(args.max_length, config.llama.max_position_embeddings)
    return partial(
        encode_sample,
        tokenizer=tokenizer,
        image_rows=config.image_rows,
        max_length=length,
        cut_answers=False,
        look=partial(_cropped, processor) if crops else partial(processor, training=True),
    )


def _cropped(processor: ImageProcessor, picture: Any) -> Tensor:
    return processor.augment(picture, random.Random(random.getrandbits(64)))


def _datasets(
    specs: Sequence[str], args: argparse.Namespace, use: Callable[..., object], progress: bool
) -> list[Dataset]:
    folder = None if args.image_root is None else Path(args.image_root)
    found = open_datasets(specs, ReadOptions(args.format, folder, with_header=args.template))
    if args.skip_bad:
        found = [leave_out_bad_rows(data, use, progress=progress) for data in found]
    return found


def _load(
    args: argparse.Namespace, source: ModelSource, dtype: torch.dtype, device: torch.device, progress: bool
) -> Owl:
    quantization = None if args.quant == "none" else Quantization(args.quant)
    with tqdm(total=source.weights.nbytes, unit="B", unit_scale=True, disable=not progress) as bar:
        return load_model(
            source,
            dtype=dtype,
            quantization=quantization or source.config.quantization,
            device=device,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def _told(args: argparse.Namespace) -> dict[str, Any]:
    left_out = ("print_config", "plan", "resume")
    return {name: value for name, value in vars(args).items() if name not in left_out}
