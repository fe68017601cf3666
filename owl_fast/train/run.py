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

from owl_fast.checkpoints import Source as ModelSource
from owl_fast.checkpoints import load_model
from owl_fast.command_line import data_options, open_model, progress_bar
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.placement import pick_device, pick_dtype
from owl_fast.errors import ParameterError
from owl_fast.images import ImageProcessor
from owl_fast.lora import LoraConfig
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer
from owl_fast.train.begun import go_on, write_settings
from owl_fast.train.final import FINAL, write_final
from owl_fast.train.memory import Sizes, budget_of, plan_of, planner_of, table
from owl_fast.train.watch import Watch
from owl_fast.training.bad_rows import BadRows, find_bad_rows
from owl_fast.training.datasets import Dataset, ReadOptions, as_sources, open_datasets
from owl_fast.training.features import FeatureCache, tower_sha256
from owl_fast.training.loop import Trainer, TrainSettings
from owl_fast.training.memory_plan import Plan, apply
from owl_fast.training.optimizer import OptimizerSettings
from owl_fast.training.optimizers import OPTIMIZERS
from owl_fast.training.packing import EncodedSample, encode_sample
from owl_fast.training.ranks import Ranks, joined
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.sources import DrawPlan
from owl_fast.training.stages import FULL_LLAMA, STAGE1, VISION, Stage, stage2
from owl_fast.training.stopping import Stop
from owl_fast.training.updates import UpdateReader

Encode = Callable[[Sample | Caption], EncodedSample]
Look = Callable[[Any], Tensor]


def train(args: argparse.Namespace) -> Path | None:
    """Train as the arguments say: the folder final/, or None after --plan and where nothing is written.

    args: of arguments.read_arguments. OwlError: as Trainer, and whatever cannot be opened.
    """
    stage = stage_of(args)
    go_on(args)
    source = open_model(args)
    if source.adapter is not None:
        raise ParameterError(
            f"{args.model}: an adapter; merge it first: "
            "Engine.from_pretrained(ADAPTER).save_pretrained(DIR, adapter='default')"
        )
    device, tokenizer, processor = pick_device(args.device), source.tokenizer(), source.processor()
    dtype, look = pick_dtype(args.dtype, device, source.config), looker(args, processor)
    encode = partial(encoder, args, source.config, tokenizer)
    with Stop.on_signals() as stop, joined(device.type) as ranks:
        if ranks.size > 1 and device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        shown = ranks.leads and not args.plain
        data = _datasets(args.data, args, encode(look), ranks, shown)
        held_out = _datasets(args.eval_data, args, encode(look), ranks, shown)
        plan = _planned(args, stage, source.config, device, dtype, data, encode(_unseen), ranks)
        if plan is None:
            return None
        model = _load(args, source, dtype, device, shown)
        features = _features(args, stage, model, "fp32" if dtype == torch.float32 else "bf16")
        out = Path(args.out)
        watch = Watch(out, args, held_out or data, bool(held_out), encode(look), tokenizer, processor)
        trainer = Trainer(
            model,
            stage,
            as_sources(data),
            settings_of(args, dtype, shown),
            out,
            encode=encode(look if features is None else features.look(look)),
            evaluate=watch.evaluate,
            resume=args.resume == "auto",
            data_changed_ok=args.data_changed_ok,
            optimizer=OPTIMIZERS[args.optimizer].build,
            features=features,
            stop=stop,
        )
        apply(model, plan.levels)
        try:
            watch.autocast = trainer.autocast
            if ranks.leads:
                write_settings(args)
            trainer.run()
            if not ranks.leads:
                return None
            watch.finish()
            return write_final(out / FINAL, trainer, source, args.model, dtype, tokenizer, processor)
        finally:
            trainer.close()
            ranks.wait()


def _planned(
    args: argparse.Namespace,
    stage: Stage,
    config: OwlConfig,
    device: torch.device,
    dtype: torch.dtype,
    data: Sequence[Dataset],
    encode: Encode,
    ranks: Ranks,
) -> Plan | None:
    """Work out the samples of an update and of a micro-batch; None after --plan has printed what it takes."""
    draws = DrawPlan(as_sources(data), args.seed)
    sizes = Sizes.of(UpdateReader(draws, 1, 1, config.image_rows, encode))
    if args.batch is None:
        args.batch = max(ranks.size, round(args.batch_tokens / sizes.mean_rows))
    planner, budget = planner_of(args, config, stage, device, dtype), budget_of(args, device, ranks)
    most = -(-args.batch // ranks.size)
    plan = plan_of(planner, sizes, args.micro_batch, most, budget)
    args.micro_batch = plan.batch.samples
    if not args.plan:
        return plan
    if ranks.leads:
        print(table(planner, plan, sizes, args.batch, budget))
    return None


def stage_of(args: argparse.Namespace) -> Stage:
    if args.stage == 1:
        return STAGE1
    if args.full:
        return FULL_LLAMA
    targets = args.lora_targets
    chosen = {"target_modules": targets[0] if len(targets) == 1 else tuple(targets)} if targets else {}
    lora = LoraConfig(r=args.lora_rank, alpha=args.lora_alpha, dropout=args.lora_dropout, **chosen)
    return stage2(lora, train_abstractor=not args.no_train_abstractor)


def settings_of(args: argparse.Namespace, dtype: torch.dtype, progress: bool) -> TrainSettings:
    return TrainSettings(
        steps=args.max_steps,
        batch=args.batch,
        micro_batch=args.micro_batch,
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


def encoder(args: argparse.Namespace, config: OwlConfig, tokenizer: Tokenizer, look: Look) -> Encode:
    """Records into token ids and pictures into what `look` makes of them."""
    return partial(
        encode_sample,
        tokenizer=tokenizer,
        image_rows=config.image_rows,
        max_length=min(args.max_length, config.llama.max_position_embeddings),
        cut_answers=False,
        look=look,
    )


def looker(args: argparse.Namespace, processor: ImageProcessor) -> Look:
    """Pictures into pixels; stage 1 crops them at random, seeded for each sample."""
    crops = args.stage == 1 and not args.no_crops
    return partial(_cropped, processor) if crops else partial(processor, training=True)


def _cropped(processor: ImageProcessor, picture: Any) -> Tensor:
    return processor.augment(picture, random.Random(random.getrandbits(64)))


def _unseen(_: Any) -> Tensor:
    """In a picture's place where only lengths matter."""
    return torch.empty(0)


def _features(args: argparse.Namespace, stage: Stage, model: Owl, precision: str) -> FeatureCache | None:
    if args.feature_cache is None:
        return None
    if stage is STAGE1:
        raise ParameterError("--feature-cache: stage 1 trains the vision tower; its outputs change")
    return FeatureCache(args.feature_cache, tower_sha256(model), precision)


def _datasets(
    specs: Sequence[str], args: argparse.Namespace, use: Encode, ranks: Ranks, progress: bool
) -> list[Dataset]:
    options = ReadOptions(**data_options(args), with_header=args.template, progress=progress)
    found = open_datasets(specs, options)
    if not args.skip_bad:
        return found

    def clean(data: Dataset) -> BadRows:
        return find_bad_rows(data, use, cap=args.bad_cap, keep=1, progress=progress)

    bad = [ranks.told("looking for bad rows", partial(clean, data)) for data in found]
    return [data.without(rows.indices, rows.counts) for data, rows in zip(found, bad, strict=True)]


def _load(
    args: argparse.Namespace, source: ModelSource, dtype: torch.dtype, device: torch.device, shown: bool
) -> Owl:
    quantization = None if args.quant == "none" else Quantization(args.quant)
    with progress_bar(shown, total=source.weights.nbytes) as progress:
        return load_model(
            source,
            dtype=dtype,
            quantization=quantization or source.config.quantization,
            device=device,
            progress=progress,
        )
