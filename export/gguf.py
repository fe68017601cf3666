"""Write the language model as a GGUF file: `python -m owl_fast.export.gguf MODEL --out FILE.gguf`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from owl_fast.export.command import (
    VISION_PARTS,
    add_shared_flags,
    bar,
    check_room,
    exported,
    new_file,
    plain_source,
)
from owl_fast.settings import read_settings

EXAMPLES = """\
examples:
  python -m owl_fast.export.gguf models/mplug-owl-llama-7b --out owl-llama-q8_0.gguf
  python -m owl_fast.export.gguf MAGAer13/mplug-owl-llama-7b --type q4_0 --out owl-llama-q4_0.gguf
  python -m owl_fast.export.gguf instruction_tuned.pth --tokenizer tokenizer.model --type f16 --out owl.gguf

FILE.gguf is what llama.cpp loads: the language model with its words, without the parts that see. In q4_0
embeddings and head are q8_0. Norms are always f32.
"""
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.export.gguf",
        description="Write a model's language model as a GGUF file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder, .pth file or hub id")
    add("--out", required=True, metavar="FILE.gguf", help="file to write, new")
    add("--type", choices=TYPES, default="q8_0", help="of the weights (default: q8_0)")
    add_shared_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the file is there, 1 when it cannot be made, 2 for wrong usage; else as command.exported."""
    args = read_settings(build_parser(), argv)
    return exported(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    from owl_fast.checkpoints import load_model, weights_sha256
    from owl_fast.checkpoints.writer import held_tensors, whole_file
    from owl_fast.export.gguf_file import check_package, plan, write_gguf
    from owl_fast.export.vocabulary import USER_DEFINED, check_plain, filled, pieces
    from owl_fast.lora import LANGUAGE_MODEL
    from owl_fast.summary import model_name, size_text

    check_package()
    out = new_file(args.out, ".gguf")
    source = plain_source(args)
    llama, tokenizer = source.config.llama, source.tokenizer().model_bytes
    check_plain(tokenizer)
    plans = plan(llama, args.type).values()
    size = sum(tensor.nbytes for tensor in plans)
    check_room(out, size)
    notes = {
        "general.name": f"{model_name(args.model)}, language model",
        "owl_fast.weights_sha256": weights_sha256(source.weights),
    }
    with bar(source.weights.nbytes, args) as progress:
        model = load_model(source, without=VISION_PARTS, progress=progress)
    _, read = held_tensors(model, dense=True)
    words = pieces(filled(tokenizer, llama.vocab_size))
    with whole_file(out) as file, bar(size, args) as progress:
        write_gguf(
            file,
            llama,
            args.type,
            lambda name: read(LANGUAGE_MODEL + name),
            words,
            notes,
            progress,
        )
    kept = 0 if args.type == "f16" else sum(tensor.kind.name == "F16" for tensor in plans)
    note = f"; rows of {kept} weights do not fill blocks: these are f16" if kept else ""
    print(f"{out}: llama in {args.type}, {size_text(out.stat().st_size)}{note}")
    if any(word.kind == USER_DEFINED for word in words):
        print(
            "its tokenizer takes some words whole: llama.cpp cuts texts as we do if they begin with a space"
        )


if __name__ == "__main__":
    raise SystemExit(main())
