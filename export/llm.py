"""Write the language model as a LlamaForCausalLM folder: `python -m owl_fast.export.llm MODEL --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from owl_fast.export.command import (
    VISION_PARTS,
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

    from owl_fast.config import LlamaConfig
    from owl_fast.tokenizer import Tokenizer

EXAMPLES = """\
examples:
  python -m owl_fast.export.llm models/mplug-owl-llama-7b --out models/owl-llama
  python -m owl_fast.export.llm MAGAer13/mplug-owl-llama-7b --out owl-llama --dtype fp16
  python -m owl_fast.export.llm instruction_tuned.pth --tokenizer tokenizer.model --out owl-llama

DIR is what AutoModelForCausalLM and AutoTokenizer of transformers load, and what else reads LLaMA's folders:
the language model without the parts that see. The tokenizer puts BOS in front.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.export.llm",
        description="Write a model's language model as a folder that transformers loads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder, .pth file or hub id; quantized weights are written dense")
    add("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    add("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="default: that of MODEL")
    add_shared_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the folder is there, 1 when it cannot be made, 2 for wrong usage; else as command.exported."""
    args = read_settings(build_parser(), argv)
    return exported(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    from owl_fast.checkpoints import load_model
    from owl_fast.checkpoints.load import common_dtype
    from owl_fast.checkpoints.writer import held_tensors, whole_folder, write_weights
    from owl_fast.engine.placement import DTYPES
    from owl_fast.export.tokenizer_json import tokenizer_json
    from owl_fast.files import write_json
    from owl_fast.lora import LANGUAGE_MODEL
    from owl_fast.summary import size_text

    out = new_folder(args.out)
    source = plain_source(args)
    tokenizer = source.tokenizer()
    words = tokenizer_json(tokenizer)
    dtype = common_dtype(source) if args.dtype == "auto" else DTYPES[args.dtype]
    check_room(out, dense_numbers(source.config, LANGUAGE_MODEL) * dtype.itemsize)
    with bar(source.weights.nbytes, args) as progress:
        model = load_model(source, dtype=dtype, without=VISION_PARTS, progress=progress)
    infos, read = held_tensors(model, dense=True)
    llama = {
        name.removeprefix(LANGUAGE_MODEL): info
        for name, info in infos.items()
        if name.startswith(LANGUAGE_MODEL)
    }
    with whole_folder(out) as folder:
        say(args, "writing the weights ...")
        write_weights(folder, llama, lambda name: read(LANGUAGE_MODEL + name))
        write_json(folder / "config.json", _config(source.config.llama, dtype))
        write_json(folder / "generation_config.json", _special_ids(source.config.llama))
        write_json(folder / "tokenizer.json", words)
        write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, source.config.llama))
        (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
        size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{out}: LlamaForCausalLM, {str(dtype).removeprefix('torch.')}, {size_text(size)}")


def _config(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_scaling": None,
        **asdict(config),
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _special_ids(config: LlamaConfig) -> dict[str, int]:
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def _tokenizer_config(tokenizer: Tokenizer, config: LlamaConfig) -> dict[str, Any]:
    """Of a class that takes tokenizer.json as it is; LlamaTokenizer would make its own of the pieces."""
    named = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "unk": tokenizer.unk_id,
        "pad": tokenizer.pad_id,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokenizer.token_bytes(index).decode() for name, index in named.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }


if __name__ == "__main__":
    raise SystemExit(main())
