"""Write a model's vision tower as an ONNX file: `python -m owl_fast.export.onnx MODEL --out DIR`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from owl_fast.errors import CheckpointError, ParameterError
from owl_fast.export.command import (
    add_shared_flags,
    bar,
    check_room,
    dense_numbers,
    exported,
    new_folder,
    plain_source,
    say,
    unbroken,
)
from owl_fast.settings import read_settings

if TYPE_CHECKING:
    from torch import Tensor

    from owl_fast.checkpoints import Source
    from owl_fast.export.onnx_file import Gap

EXAMPLES = """\
examples:
  python -m owl_fast.export.onnx models/mplug-owl-llama-7b --out owl-vision
  python -m owl_fast.export.onnx MAGAer13/mplug-owl-llama-7b --out owl-rows --part vision+abstractor
  python -m owl_fast.export.onnx instruction_tuned.pth --vision-heads 16 --out owl-vision --dtype fp16
  python -m owl_fast.export.onnx models/mplug-owl-llama-7b --out owl-int8 --int8 --data 'photos/**/*.jpg'

DIR/model.onnx takes pixels (batch, 3, S, S), normalised, and gives features (batch, 1 + patches, width) of
the tower, or with the abstractor the rows (batch, queries + 1, width) that stand for a picture in a prompt;
both float32. Its metadata tells how to make pixels of a picture, and which weights these are.
"""
CHECKED = (1, 2, 3)  # pictures in a batch
# What may lie between ONNX Runtime and torch in float32: per unit of the largest feature, as that is where
# float32 rounds; for float16 the cosine of a row, and for int8 the mean over rows.
MOST_ERROR, LEAST_COSINE, LEAST_MEAN = 1e-4, 0.999, 0.98
# Of a weight on the disk while it is written: what becomes int8 lies there twice in float32 meanwhile.
BYTES = {"fp32": 4, "fp16": 2, "int8": 9}

ADVICE = {
    "fp32": "",
    "fp16": "; float16 may be too narrow for these weights: take fp32",
    "int8": "; 8 bits may be too few for these weights: take fp16, or --data of other pictures",
}


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
    add("--dtype", choices=["fp32", "fp16"], help="of the weights (default: fp32)")
    add(
        "--int8",
        action="store_true",
        help="weights in 8 bits, and what they multiply, calibrated on pictures",
    )
    add("--data", metavar="PICTURES", help="of --int8: a folder, or a pattern in quotes (default: built in)")
    add_shared_flags(parser, tokenizer=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the folder is there, 1 when it cannot be made, 2 for wrong usage; else as command.exported."""
    args = read_settings(build_parser(), argv)
    return exported(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    import torch

    from owl_fast import ops
    from owl_fast.checkpoints import load_model
    from owl_fast.checkpoints.writer import whole_folder
    from owl_fast.engine.onnx_vision import PARTS, Session, check_packages
    from owl_fast.export.int8 import pictures, write_int8
    from owl_fast.export.onnx_file import OPSET, PACKAGES, Gap, write_onnx
    from owl_fast.export.pictures import PicturePart
    from owl_fast.quantization.whole import dequantize_
    from owl_fast.summary import size_text

    dtype = _dtype(args)
    check_packages(*PACKAGES)
    out = new_folder(args.out)
    source = plain_source(args)
    check_room(out, dense_numbers(source.config, PARTS[args.part]) * BYTES[dtype])
    seen = pictures(args.data, source.processor()) if args.int8 else None
    metadata = _metadata(source, args.part, dtype, "" if seen is None else seen.told)
    with bar(source.weights.nbytes, args) as progress:
        model = load_model(source, dtype=torch.float32, without=("language_model",), progress=progress)
    dequantize_(model)
    part = PicturePart(model, args.part)
    batches = _batches(part.image_size) if seen is None else seen.compare
    with torch.inference_mode(), ops.kernels(False):
        wanted = [part(pixels) for pixels in batches]
    with whole_folder(out) as folder:
        say(args, "writing the graph ...")
        if seen is None:
            path = write_onnx(part.half() if dtype == "fp16" else part, folder, metadata)
        else:
            with bar(len(seen.calibrate), args, "picture") as progress:
                path = write_int8(part, folder, metadata, seen.calibrate, progress)
        size = sum(file.stat().st_size for file in folder.iterdir())
        say(args, "comparing ONNX Runtime with torch ...")
        with unbroken():
            run = Session(path)
        gap = Gap.between([run(pixels) for pixels in batches], wanted)
        _check(gap, dtype)
    compared = f"batches of {', '.join(map(str, CHECKED))} pictures"
    if seen is not None:
        compared = f"{sum(map(len, batches))} pictures"
        print(f"calibrated on {len(seen.calibrate)} of {seen.told}")
    print(
        f"{out / path.name}: {args.part} in {dtype}, opset {OPSET}, {size_text(size)}\n"
        f"ONNX Runtime {version('onnxruntime')} and torch in fp32, {compared}: largest difference "
        f"{gap.error:.1e} in numbers up to {gap.largest:.3g}, "
        f"least cosine {gap.cosine:.7f}, mean {gap.mean:.7f}"
    )


def _dtype(args: argparse.Namespace) -> str:
    if args.int8 and args.dtype is not None:
        raise ParameterError(f"--int8 and --dtype {args.dtype}: name one of them")
    if args.data is not None and not args.int8:
        raise ParameterError("--data: pictures to calibrate --int8 on, which is not asked for")
    return "int8" if args.int8 else args.dtype or "fp32"


def _metadata(source: Source, part: str, dtype: str, calibrated: str) -> dict[str, str]:
    """What a user of the file has to know, as texts; lists and truths in JSON."""
    import owl_fast
    from owl_fast.checkpoints.fingerprint import part_sha256
    from owl_fast.engine.onnx_vision import DIGEST, PART, PARTS, SIZE
    from owl_fast.images import RESCALE

    processor = source.processor()
    return {
        "owl_fast": owl_fast.__version__,
        PART: part,
        "dtype": dtype,
        DIGEST: part_sha256(source, PARTS[part]),
        SIZE: str(processor.size),
        "resize": "crop" if processor.crop else "squeeze",
        "resample": "bicubic",
        "rgb_before_resize": json.dumps(processor.rgb_first),
        "rescale_factor": str(RESCALE),
        "image_mean": json.dumps(processor.mean),
        "image_std": json.dumps(processor.std),
        **({"calibrated_on": calibrated} if calibrated else {}),
    }


def _batches(side: int) -> list[Tensor]:
    """Batches of normalised noise (N, 3, S, S), the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, side, side, generator=generator) for count in CHECKED]


def _check(gap: Gap, dtype: str) -> None:
    good = {
        "fp32": gap.error <= MOST_ERROR * max(1.0, gap.largest),
        "fp16": gap.cosine >= LEAST_COSINE,
        "int8": gap.mean >= LEAST_MEAN,
    }
    if not good[dtype]:  # NaN is none of it
        raise CheckpointError(
            f"ONNX Runtime gives other features than torch: off by {gap.error:.1e} in numbers up to "
            f"{gap.largest:.3g}, cosine {gap.cosine:.5f}, mean {gap.mean:.5f}; nothing was written"
            + ADVICE[dtype]
        )


if __name__ == "__main__":
    raise SystemExit(main())
