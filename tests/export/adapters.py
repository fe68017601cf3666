"""Adapters for tests, and models they were trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from owl_fast import quantize
from owl_fast.checkpoints import load_model
from owl_fast.config import Quantization
from owl_fast.lora import Base, LoraConfig, attach, lora_slots, save_adapter
from owl_fast.models.owl import Owl

EXTRA = "abstractor.visual_fc.weight"


def adapted(model: Path, held: Quantization | None = None, dtype: torch.dtype = torch.float32) -> Owl:
    """A model with updates that matter, and one other tensor changed, as after stage 2."""
    owl = load_model(model, quantization=held, dtype=dtype)
    attach(owl, LoraConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for slot in lora_slots(owl).values():
            if slot.pair is not None:
                slot.pair.lora_B.normal_(std=0.02, generator=generator)
        owl.get_parameter(EXTRA).mul_(1.1)
    return owl


def adapter_of(model: Path, folder: Path, base: Base | None) -> Path:
    """What save_adapter leaves of such a model. base: None for an adapter that names its base alone."""
    save_adapter(adapted(model), folder, LoraConfig(), base=base or str(model), extra=[EXTRA])
    return folder


def quantized(model: Path, folder: Path, scheme: str) -> Path:
    flags = ["--scheme", scheme, "--dtype", "fp32", "--device", "cpu", "--plain"]
    assert quantize.main([str(model), "--out", str(folder), *flags]) == 0
    return folder
