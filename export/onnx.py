"""Write a model's vision tower as an ONNX file: `python -m owl_fast.export.onnx MODEL --out DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from owl_fast.command_line import add_model_flags, ended, open_model
from owl_fast.errors import CheckpointError, ParameterError
from owl_fast.settings import add_settings_flags, read_settings

if TYPE_CHECKING:
    from torch import Tensor

    from owl_fast.checkpoints import Source
    from owl_fast.export.onnx_file import Gap

EXAMPLES = """\
examples:
  python -m owl_fast.export.onnx models/mplug-owl-llama-7b --out owl-vision
  python -m owl_fast.export.onnx MAGAer13/mplug-owl-llama-7b --out owl-rows --part vision+abstractor
  python -m owl_fast.export.onnx instruction_tuned.pth --vision-heads 16 --out owl-vision --dtype fp16

DIR/model.onnx takes pixels (batch, 3, S, S), normalised, and gives features (batch, 1 + patches, width) of
the tower, or with the abstractor the rows (batch, queries + 1, width) that stand for a picture in a prompt;
both float32. Its metadata tells how to make pixels of a picture, and which weights these are.
"""
CHECKED = (1, 2, 3)  # pictures in a batch
# What may lie between ONNX Runtime and torch in float32: per unit of the largest feature, as that is where
# float32 rounds; and for float16 the cosine of a row.
MOST_ERROR, LEAST_COSINE = 1e-4, 0.999


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.export.onnx",
        description="Write a model's vision tower as an ONNX file, and compare it with torch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder, .pth file or hub id; quantized weights are written dense")
    add("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    add("--part", choices=["vision", "vision+abstractor"], default="vision", help="default: vision")
    add("--dtype", choices=["fp32", "fp16"], default="fp32", help="of the weights (default: fp32)")
    add_model_flags(parser, tokenizer=False)
    add("--plain", action="store_true", help="no progress")
    add_settings_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the folder is there, 1 when it cannot be made, 2 for wrong usage, 130 after Ctrl-C."""
    args = read_settings(build_parser(), argv)
    return ended(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    import torch

    from owl_fast import ops
    from owl_fast.checkpoints import load_model
    from owl_fast.checkpoints.writer import check_new, whole_folder
    from owl_fast.engine.onnx_vision import Session, check_packages
    from owl_fast.export.onnx_file import OPSET, PACKAGES, Gap, write_onnx
    from owl_fast.export.pictures import PicturePart
    from owl_fast.quantization.whole import dequantize_
    from owl_fast.summary import size_text

    check_packages(*PACKAGES)
    out = Path(args.out)
    if out.is_symlink():
        raise CheckpointError(f"{out}: a link; name the folder itself")
    check_new(out)  # before minutes of work
    source = _source(args)
    metadata = _metadata(source, args)
    with _bar(source, args) as progress:
        model = load_model(source, dtype=torch.float32, without=("language_model",), progress=progress)
    dequantize_(model)
    part = PicturePart(model, args.part)
    batches = _batches(part.image_size)
    with torch.inference_mode(), ops.kernels(False):
        wanted = [part(pixels) for pixels in batches]
    with whole_folder(out) as folder:
        _say(args, "writing the graph ...")
        path = write_onnx(part.half() if args.dtype == "fp16" else part, folder, metadata)
        size = sum(file.stat().st_size for file in folder.iterdir())
        _say(args, "comparing ONNX Runtime with torch ...")
        run = Session(path)
        gap = Gap.between([run(pixels) for pixels in batches], wanted)
        _check(gap, args.dtype)
    print(
        f"{out / path.name}: {args.part} in {args.dtype}, opset {OPSET}, {size_text(size)}\n"
        f"ONNX Runtime {version('onnxruntime')} and torch in fp32, batches of {', '.join(map(str, CHECKED))} "
        f"pictures: largest difference {gap.error:.1e} in numbers up to {gap.largest:.3g}, "
        f"least cosine {gap.cosine:.7f}"
    )


def _source(args: argparse.Namespace) -> Source:
    source = open_model(args)
    if source.adapter is not None:
        raise ParameterError(
            f"{args.model}: an adapter; merge it first, and export what "
            "Engine.from_pretrained(ADAPTER).save_pretrained(DIR, adapter='default') writes"
        )
    return source


def _metadata(source: Source, args: argparse.Namespace) -> dict[str, str]:
    """What a user of the file has to know, as texts; lists and truths in JSON."""
    import owl_fast
    from owl_fast.checkpoints.fingerprint import part_sha256
    from owl_fast.engine.onnx_vision import DIGEST, PART, PARTS, SIZE
    from owl_fast.images import RESCALE

    processor = source.processor()
    return {
        "owl_fast": owl_fast.__version__,
        PART: args.part,
        "dtype": args.dtype,
        DIGEST: part_sha256(source, PARTS[args.part]),
        SIZE: str(processor.size),
        "resize": "crop" if processor.crop else "squeeze",
        "resample": "bicubic",
        "rgb_before_resize": json.dumps(processor.rgb_first),
        "rescale_factor": str(RESCALE),
        "image_mean": json.dumps(processor.mean),
        "image_std": json.dumps(processor.std),
    }


@contextmanager
def _bar(source: Source, args: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(total=source.weights.nbytes, unit="B", unit_scale=True, disable=args.plain) as bar:
        yield lambda done, total: bar.update(done - bar.n)


def _batches(side: int) -> list[Tensor]:
    """Batches of normalised noise (N, 3, S, S), the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, side, side, generator=generator) for count in CHECKED]


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.plain:
        print(text, file=sys.stderr, flush=True)


def _check(gap: Gap, dtype: str) -> None:
    small, alike = gap.error <= MOST_ERROR * max(1.0, gap.largest), gap.cosine >= LEAST_COSINE
    if not (small if dtype == "fp32" else alike):  # NaN is neither
        raise CheckpointError(
            f"ONNX Runtime gives other features than torch: off by {gap.error:.1e} in numbers up to "
            f"{gap.largest:.3g}, cosine {gap.cosine:.5f}; nothing was written"
            + ("; float16 may be too narrow for these weights: take fp32" if dtype == "fp16" else "")
        )


if __name__ == "__main__":
    raise SystemExit(main())
