"""What is at a path: the one place that knows every form a model comes in.

| at the path | weights | config |
|---|---|---|
| folder in Hugging Face layout | .bin or .safetensors, one file or shards | config.json |
| folder the first release wrote | the same | its own kind of config.json |
| state dict of either release: .pth, .pt, .bin, .safetensors | that file | sizes from the tensors |
| either of them as PEFT wraps it | the same, updates merged on the way | the same |
| adapter folder | those of the base it names, the adapter on top | the base's |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from owl_fast.checkpoints.first_release import FIRST, MARK
from owl_fast.checkpoints.folder import FORMATS, WeightFolder
from owl_fast.checkpoints.layout import LATER, Layout
from owl_fast.checkpoints.names import map_name
from owl_fast.checkpoints.peft import CONFIG_FILE, MAX_ALPHA, LoraConfig, Update, is_within, unwrap
from owl_fast.checkpoints.sizes import VIDEO_MARK, infer_sizes, unread_sizes
from owl_fast.checkpoints.tensorfile import PICKLED
from owl_fast.config import OwlConfig
from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError
from owl_fast.files import is_there, read_json
from owl_fast.hub import local_path
from owl_fast.images import ImageProcessor
from owl_fast.tokenizer import Tokenizer

ALPHA = 32.0  # of the originals' training scripts, which write it into no file
TOKENIZER = "tokenizer.model"

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A model on disk: all is known of it, and none of its weights is read yet.

    targets: a tensor's name in the files -> the model's name, None for what is knowingly dropped; low-rank
    updates are not among them. updates: by the model's name of the weight they change, alpha their common
    numerator. adapter: a folder with updates to attach to the loaded model. told_heads: of the vision tower
    and of the abstractor, None where nothing but the release's default speaks: weights do not show them.
    """

    path: Path
    config: OwlConfig
    layout: Layout
    weights: WeightFolder
    targets: Mapping[str, str | None]
    updates: Mapping[str, Update]
    alpha: float
    tokenizer_file: Path
    adapter: Path | None
    told_heads: tuple[int | None, int | None]

    def tokenizer(self) -> Tokenizer:
        if not is_there(self.tokenizer_file):
            raise CheckpointError(
                f"{self.tokenizer_file}: no such file; the SentencePiece file {TOKENIZER} belongs beside the "
                "weights, or is given with tokenizer=FILE"
            )
        tokenizer = Tokenizer.from_file(self.tokenizer_file, literal_specials=self.config.first_release)
        pieces, rows = tokenizer.vocab_size, self.config.llama.vocab_size
        if pieces > rows:
            raise CheckpointError(
                f"{self.tokenizer_file}: a tokenizer of {pieces} pieces does not belong to a model of "
                f"{rows} rows"
            )
        return tokenizer

    def processor(self) -> ImageProcessor:
        size = self.config.vision.image_size
        processor = ImageProcessor.from_folder(self.weights.path, size)
        if processor.size != size:
            raise CheckpointError(
                f"{self.weights.path}: preprocessor_config.json makes pictures of {processor.size} pixels a "
                f"side, the vision tower takes {size}"
            )
        early = self.config.first_release or self.config.video
        return replace(processor, rgb_first=early, crop=self.config.video)


def open_source(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    config: str | Path | Raw | None = None,
    vision_heads: int | None = None,
    abstractor_heads: int | None = None,
    lora_alpha: float | None = None,
) -> Source:
    """Find out what is at `path`: CheckpointError when it is no model, UnsupportedError when none we run.

    An adapter's base may be a hub id, which is downloaded. The options tell what files cannot. tokenizer: a
    tokenizer.model, or a folder with one. config: a config.json, or any part of one as a dict; it goes before
    the model's own. vision_heads and abstractor_heads go before both; where nothing says, 8 in files of the
    first release and 16 in later ones, as in the 7B models. lora_alpha: of a state dict with low-rank
    updates; else that of an adapter_config.json beside it, else 32.
    """
    for name, value, kinds in (
        ("tokenizer", tokenizer, (str, os.PathLike)),
        ("config", config, (str, os.PathLike, Mapping)),
    ):
        if value is not None and not isinstance(value, kinds):
            raise ParameterError(
                f"{name} is a {type(value).__name__}; wanted a path{', or a dict' * (name == 'config')}"
            )
    path, adapter = Path(path), None
    if _is_adapter(path):
        path, adapter = _base_of(path), path
    weights = open_weights(path)
    names, updates = unwrap(path, {name: entry.info for name, entry in weights.entries.items()})
    layout = FIRST if MARK in names.values() else LATER
    targets = {name: map_name(layout.names, plain) for name, plain in names.items()}
    shapes = {targets[name] or plain: weights.entries[name].info.shape for name, plain in names.items()}
    given = (config or {}) if isinstance(config, Mapping | None) else read_json(config)
    heads = {"vision_config": vision_heads, "visual_abstractor_config": abstractor_heads}
    told_by, own = _own_config(path, weights.path, layout, shapes)
    options = {section: {"num_attention_heads": n} for section, n in heads.items() if n is not None}
    told = _overlay(own, layout.sections(given), options)
    model = _read_config(told_by, _overlay(layout.defaults, told))
    told_heads = [told.get(section, {}).get("num_attention_heads") for section in heads]
    if told_by.name == "config.json":
        told_heads = [model.vision.num_attention_heads, model.abstractor.num_attention_heads]
    beside = weights.path / TOKENIZER if tokenizer is None else Path(tokenizer)
    return Source(
        path=path,
        config=model,
        layout=layout,
        weights=weights,
        targets=targets,
        updates={map_name(layout.names, weight) or weight: update for weight, update in updates.items()},
        alpha=_alpha(weights.path, updates, lora_alpha),
        tokenizer_file=beside / TOKENIZER if beside.is_dir() else beside,
        adapter=adapter,
        told_heads=(told_heads[0], told_heads[1]),
    )


# --- which files ------------------------------------------------------------------------------------------


def open_weights(path: Path) -> WeightFolder:
    """The weights of a folder, or of one file taken by itself."""
    if not os.path.exists(path):  # pathlib's own would raise for a name no file can have
        raise CheckpointError(f"{path!s:.300}: no such file or folder")
    if not path.is_dir():
        return WeightFolder.of_file(path)
    if not _holds_weights(path):
        files = sorted(file.name for ending in PICKLED for file in path.glob(f"*{ending}"))
        if files:
            raise CheckpointError(f"{path}: no model folder; it holds {', '.join(files[:4])}: name that file")
    return WeightFolder.open(path)


def _holds_weights(folder: Path) -> bool:
    return os.path.isdir(folder) and any(
        any(folder.glob(f"{stem}*{ending}*")) for stem, ending in FORMATS.values()
    )


def _is_model(path: Path) -> bool:
    return os.path.isfile(path) or _holds_weights(path)


def _is_adapter(path: Path) -> bool:
    return os.path.isfile(path / CONFIG_FILE) and not _holds_weights(path)


def _base_of(adapter: Path) -> Path:
    """The model an adapter says it belongs to: a path from the adapter's folder or from here, or a hub id."""
    name = read_json(adapter / CONFIG_FILE).get("base_model_name_or_path")
    rest = "name the base as the model, and this folder as its adapter"
    if isinstance(name, str) and name:
        try:
            base = adapter / name
            base = base if _is_model(base) else local_path(name)
            if _is_model(base):
                return base
        except (CheckpointError, UnsupportedError) as error:
            raise type(error)(f"{adapter}: an adapter, and its base cannot be had: {error}; {rest}") from None
    raise CheckpointError(
        f"{adapter}: an adapter, and its base {name!r:.120} is no model on this machine; {rest}"
    )


# --- config -----------------------------------------------------------------------------------------------


def _own_config(
    path: Path, folder: Path, layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Path, Raw]:
    """Config sections and the file that gives them: the config.json beside the weights, or their sizes.

    A file named by itself may lie beside the config.json of something else: it counts if its release fits.
    """
    beside = folder / "config.json"
    raw = read_json(beside) if is_there(beside) else None
    fits = raw is not None and raw.get("model_type", layout.model_type) == layout.model_type
    if raw is None or (not fits and path != folder):
        return path, infer_sizes(path, shapes)
    if not fits:
        raise UnsupportedError(
            f"{beside}: model_type is {raw['model_type']!r:.80}, but the tensors are named as in "
            f"{layout.release} ({layout.model_type!r}); put the config there that belongs to them"
        )
    sections = layout.sections(raw)
    if layout is FIRST or (VIDEO_MARK in shapes and "video" not in raw):
        sections = _overlay(sections, unread_sizes(path, shapes))
    return beside, sections


def _overlay(*parts: Raw) -> dict[str, Any]:
    """Config sections joined field by field, later ones first; nulls say nothing."""
    joined: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping) and isinstance(joined.get(key, {}), Mapping):
                joined[key] = {**joined.get(key, {}), **{k: v for k, v in value.items() if v is not None}}
            elif value is not None:
                joined[key] = value
    return joined


def _read_config(told_by: Path, raw: dict[str, Any]) -> OwlConfig:
    try:
        return OwlConfig.from_dict(raw)
    except (CheckpointError, UnsupportedError) as error:
        reason = str(error).removeprefix("config.json: ")
        if told_by.name != "config.json":
            reason += "; tell it with vision_heads=, abstractor_heads= or config="
        raise type(error)(f"{told_by}: {reason}") from None


def _alpha(folder: Path, updates: Mapping[str, Update], given: float | None) -> float:
    if not updates:
        if given is not None:
            raise UnsupportedError(f"{folder}: lora_alpha {given} came, but no weight has a low-rank update")
        return ALPHA
    if given is not None:
        if not is_within(given, MAX_ALPHA):
            raise UnsupportedError(f"lora_alpha {given!r:.60}: wanted a number of at most {MAX_ALPHA:.0e}")
        return given
    beside = folder / CONFIG_FILE
    if not is_there(beside):
        return ALPHA
    config = LoraConfig.from_file(beside)
    for weight, update in updates.items():
        if update.rank != config.r:
            raise CheckpointError(
                f"{beside}: r = {config.r}, but the update of {weight} has rank {update.rank}"
            )
    return config.alpha
