"""Write a folder with quantized weights: `python -m owl_fast.quantize MODEL --scheme int4 --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from owl_fast.command_line import add_model_flags, ended, open_model, progress_bar
from owl_fast.errors import ParameterError, UnsupportedError
from owl_fast.settings import add_settings_flags, read_settings

if TYPE_CHECKING:
    from owl_fast.checkpoints import Source

EXAMPLES = """\
examples:
  python -m owl_fast.quantize models/mplug-owl-llama-7b --scheme int4 --out models/owl-int4
  python -m owl_fast.quantize MAGAer13/mplug-owl-llama-7b --scheme int8 --quant-vision int8 --out owl-int8
  python -m owl_fast.quantize instruction_tuned.pth --tokenizer tokenizer.model --scheme int4 --out owl-int4
  python -m owl_fast.chat owl-int4                               loads in seconds

An adapter stays apart: quantize its base, and name the adapter when you chat. What int8 and int4 cost in
accuracy is told in docs/quantization.md.
"""
SHARD_BYTES = 256 << 20  # of which a copy is in memory while it is written


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.quantize",
        description="Write a model folder with the linear weights in 8 or 4 bits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder, .pth file or hub id")
    add("--scheme", required=True, choices=["int8", "int4"], help="of the language model with its head")
    add("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    add("--quant-vision", choices=["none", "int8"], default="none", help="the vision tower (default: none)")
    add("--dtype", default="bf16", choices=["bf16", "fp16", "fp32"], help="of the rest (default: bf16)")
    add("--device", default="auto", help="where to compute: auto (default), cuda, cuda:N or cpu")
    add_model_flags(parser)
    add("--plain", action="store_true", help="no progress bar")
    add_settings_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the folder is there, 1 when it cannot be made, 2 for wrong usage, 130 after Ctrl-C."""
    args = read_settings(build_parser(), argv)
    return ended(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    from dataclasses import replace
    from pathlib import Path

    from owl_fast.checkpoints import load_model, save_model, weights_sha256
    from owl_fast.checkpoints.writer import check_new
    from owl_fast.config import Quantization
    from owl_fast.engine.placement import DTYPES, pick_device
    from owl_fast.summary import size_text

    source = _source(args)
    out = Path(args.out)
    check_new(out)  # before minutes of work
    vision = None if args.quant_vision == "none" else args.quant_vision
    tokenizer, processor = source.tokenizer(), source.processor()
    with progress_bar(not args.plain, total=source.weights.nbytes) as progress:
        model = load_model(
            source,
            dtype=DTYPES[args.dtype],
            quantization=Quantization(args.scheme, vision),
            device=pick_device(args.device),
            progress=progress,
        )
    held = model.config.quantization
    assert held is not None
    # Adapters trained on the original know these weights by it.
    known = replace(held, base_sha256=weights_sha256(source.weights))
    model.config = replace(model.config, quantization=known)
    save_model(
        model,
        out,
        shard_bytes=SHARD_BYTES,
        side_files=source.weights.path,
        tokenizer=tokenizer.model_bytes,
        preprocessor=processor.to_dict(),
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {held}, {size_text(size)} (before: {size_text(source.weights.nbytes)})")


def _source(args: argparse.Namespace) -> Source:
    source = open_model(args)
    if source.adapter is not None:
        raise ParameterError(
            f"{args.model}: an adapter; quantize its base {source.path}, and name the adapter when you chat"
        )
    if source.config.quantization is not None:
        raise UnsupportedError(
            f"{args.model}: its weights are {source.config.quantization} already; take the original model"
        )
    return source


if __name__ == "__main__":
    raise SystemExit(main())
