"""An engine's model as a folder that can be loaded again."""

from __future__ import annotations

from pathlib import Path

from owl_fast.checkpoints import save_model
from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.images import ImageProcessor
from owl_fast.lora import Adapter
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer


def save_folder(
    model: Owl,
    folder: str | Path,
    format: str,
    adapter: Adapter | None,
    source: WeightFolder | None,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
) -> None:
    """The model, which carries no adapter, with the adapter's updates merged into what is written; files that
    lay beside its source come along."""
    save_model(
        model,
        folder,
        format=format,
        side_files=None if source is None else source.path,
        tokenizer=tokenizer.model_bytes,
        preprocessor=processor.to_dict(),
        change=None if adapter is None else adapter.merged,
    )
