"""final/: what a run leaves for others to load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from owl_fast.checkpoints import Source, save_model, weights_sha256
from owl_fast.images import ImageProcessor
from owl_fast.lora import Base, save_adapter
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.loop import Trainer

FINAL = "final"


def write_final(
    folder: Path,
    trainer: Trainer,
    source: Source,
    name: str,
    dtype: torch.dtype,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
) -> Path:
    """A model folder, or after stage 2 an adapter folder; an earlier one stands until the new one is whole.

    name: the model that was trained on, by which an adapter finds its base. dtype: of the model's weights.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model, stage = trainer.model, trainer.stage
    if stage.lora is not None:
        held = model.config.quantization
        path = Path(name)
        base = Base(
            str(path.resolve()) if path.exists() else name,
            weights_sha256(source.weights),
            None if held is None else str(held),
        )
        save_adapter(model, fresh, stage.lora, base=base, extra=stage.checkpoint_names(model))
    else:
        for parameter in trainer.parameters.values():
            parameter.data = parameter.data.to(dtype)
        save_model(
            model,
            fresh,
            side_files=source.weights.path,
            tokenizer=tokenizer.model_bytes,
            preprocessor=processor.to_dict(),
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return folder
