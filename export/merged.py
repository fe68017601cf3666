"""Write a model with an adapter merged into it: `python -m owl_fast.export.merged BASE ADAPTER --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from owl_fast.errors import CheckpointError, OwlError, UnsupportedError
from owl_fast.export.command import (
    add_shared_flags,
    bar,
    check_room,
    dense_numbers,
    exported,
    new_folder,
    plain_source,
    say,
)
from owl_fast.settings import read_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from owl_fast.checkpoints import Source
    from owl_fast.config import Quantization
    from owl_fast.export.logits import Gap, Prompts
    from owl_fast.lora import Adapter, Base
    from owl_fast.models.owl import Owl

EXAMPLES = """\
examples:
  python -m owl_fast.export.merged models/mplug-owl-llama-7b runs/mine/final --out models/mine
  python -m owl_fast.export.merged instruction_tuned.pth runs/mine/final --vision-heads 16 --out models/mine
  python -m owl_fast.export.merged models/owl-int4 runs/mine/final --out models/mine --dtype bf16
  python -m owl_fast.chat models/mine                            needs no adapter any more

DIR is a model folder in Hugging Face layout, its weights dense. BASE is the model that ADAPTER was trained
on: its hash is compared with the one in the adapter. An adapter trained on int4 or int8 weights is merged
into what these stand for, whether BASE is the quantized model or the original. Before DIR gets its name, its
logits are compared with those of BASE with ADAPTER.
"""
# The mean difference there may be between merged weights, which are rounded to the dtype written, and the
# adapter beside them, as a share of the largest logit. An adapter that is left out makes some hundredths.
MOST_OFF = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.export.merged",
        description="Write a model folder with an adapter merged into the weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="BASE", help="the model it was trained on: folder, .pth file or hub id")
    add("adapter", metavar="ADAPTER", help="folder or hub id; such as final/ of a run of stage 2")
    add("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    add("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="default: that of BASE")
    add(
        "--other-precision",
        action="store_true",
        help="merge into the weights of BASE as they are, though the adapter was trained on them held "
        "otherwise; how far the answers are then from those in training is told",
    )
    add_shared_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the folder is there, 1 when it cannot be made, 2 for wrong usage; else as command.exported."""
    args = read_settings(build_parser(), argv)
    return exported(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    import torch

    from owl_fast.checkpoints import load_model
    from owl_fast.checkpoints.load import common_dtype, empty_model
    from owl_fast.checkpoints.writer import whole_folder, write_model
    from owl_fast.engine.placement import DTYPES
    from owl_fast.export.logits import Gap, Prompts
    from owl_fast.hub import local_path
    from owl_fast.lora import read_adapter
    from owl_fast.summary import size_text

    out = new_folder(args.out)
    source = plain_source(args)
    dtype = common_dtype(source) if args.dtype == "auto" else DTYPES[args.dtype]
    path = local_path(args.adapter)
    adapter = read_adapter(empty_model(source.config), path).to(torch.device("cpu"), dtype)
    check_room(out, dense_numbers(source.config) * dtype.itemsize)
    _check_base(path, adapter.base, source)
    trained, held = _precisions(path, adapter.base, source, args.other_precision)
    prompts = Prompts.of(source)
    tokenizer, processor = source.tokenizer(), source.processor()
    as_trained = None
    if trained != held and (origin := _as_trained(source, adapter.base, trained)) is not None:
        as_trained = _logits(_load(origin, trained, dtype, args), adapter, prompts)
    model = _load(source, held, dtype, args)
    wanted = _logits(model, adapter, prompts)
    with whole_folder(out) as folder:
        say(args, "writing the weights ...")
        write_model(
            model,
            folder,
            side_files=source.weights.path,
            tokenizer=tokenizer.model_bytes,
            preprocessor=processor.to_dict(),
            change=adapter.merged,
        )
        size = sum(file.stat().st_size for file in folder.iterdir())
        del model  # the merged one takes its place in memory
        say(args, "comparing the logits ...")
        merged = prompts.logits(load_model(folder))
        gap = Gap.between(merged, wanted)
        _check(gap, dtype)
    print(f"{out}: {args.model} with {args.adapter}, {_name(dtype)}, {size_text(size)}")
    if adapter.base is None:
        print(f"{path} does not say what it was trained on: whether on this base is not known")
    print(f"merged, and the adapter beside its base ({_held(held)}): {gap}")
    if as_trained is not None:
        print(f"merged, and as it was trained ({_held(trained)}): {Gap.between(merged, as_trained)}")
    elif trained != held:
        assert adapter.base is not None
        print(
            f"how far that is from the logits in training is not known: {adapter.base.name}, "
            f"{_held(trained)}, is not on this machine"
        )


def _check_base(path: Path, base: Base | None, source: Source) -> None:
    """CheckpointError if the adapter names other weights than these."""
    from owl_fast.checkpoints import weights_sha256

    if base is None:
        return
    sha256, held = weights_sha256(source.weights), source.config.quantization
    if not base.is_of(sha256, held):
        made_of = f", made of {held.base_sha256:.12}..." if held and held.base_sha256 else ""
        raise CheckpointError(
            f"{path}: was trained on {base.name!r:.100} with weights of sha256 {base.sha256:.12}..., those "
            f"of {source.path} have {sha256:.12}...{made_of}; give the model it was trained on as BASE"
        )


def _precisions(
    path: Path, base: Base | None, source: Source, other: bool
) -> tuple[Quantization | None, Quantization | None]:
    """How the weights were held in training, and how those are that the adapter is merged into.

    UnsupportedError if these differ and nobody allowed it.
    """
    from owl_fast.config import Quantization

    given = source.config.quantization
    if base is None:
        return given, given
    trained = None if base.quantization is None else Quantization.from_text(base.quantization)
    if trained == given or other:
        return trained, given
    if given is None:
        return trained, trained  # quantized while they are read, as in training
    raise UnsupportedError(
        f"{path}: was trained on weights held {_held(trained)}, those of {source.path} are held "
        f"{_held(given)}: merged they answer otherwise than in training. Give {base.name!r:.100} as BASE, "
        "or allow it with --other-precision"
    )


def _as_trained(source: Source, base: Base | None, trained: Quantization | None) -> Source | None:
    """What gives the weights as they were in training: the original among this source and the model that the
    adapter names, if that is on this machine."""
    from owl_fast.checkpoints import open_source, weights_sha256

    if source.config.quantization is None:
        return source
    if base is None or not Path(base.name).exists():
        return None
    try:
        named = open_source(base.name)
        held = named.config.quantization
        fits = held in (None, trained) and base.is_of(weights_sha256(named.weights), held)
    except OwlError:
        return None
    return named if fits else None


def _load(source: Source, held: Quantization | None, dtype: torch.dtype, args: argparse.Namespace) -> Owl:
    from owl_fast.checkpoints import load_model

    with bar(source.weights.nbytes, args) as progress:
        return load_model(source, dtype=dtype, quantization=held, progress=progress)


def _logits(model: Owl, adapter: Adapter, prompts: Prompts) -> Tensor:
    """Of the model with the adapter, whose updates are taken off again."""
    from owl_fast.checkpoints.names import views
    from owl_fast.lora import attach_adapter_, detach_, lora_slots

    attach_adapter_(lora_slots(model), views(model), adapter)
    try:
        return prompts.logits(model)
    finally:
        detach_(model)


def _check(gap: Gap, dtype: torch.dtype) -> None:
    if not gap.within(MOST_OFF[_name(dtype)]):
        raise CheckpointError(
            f"the merged model gives other logits than the adapter on its base: {gap}; nothing was written. "
            "Another --dtype may hold the sums better"
        )


def _held(quantization: Quantization | None) -> str:
    return "unquantized" if quantization is None else f"as {quantization}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    raise SystemExit(main())
