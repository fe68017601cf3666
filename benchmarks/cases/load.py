"""load: a model folder of full size, from disk to its first token, within the memory limit.

The folder (random bfloat16 weights, .safetensors shards) is made on the spot. A fresh process loads it while
a thread samples its anonymous and shared memory; the limit is the model, two of its largest tensors and
0.5 GB. The peer is a plain sequential read of the same bytes in the same run; both start with a cold cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    ROOT,
    MemoryPeak,
    Row,
    available_bytes,
    fail,
    forget_cached,
    row,
)
from owl_fast.checkpoints import copy_side_files, load_model
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.names import views
from owl_fast.checkpoints.tensorfile import TensorInfo
from owl_fast.checkpoints.writer import write_weights
from owl_fast.config import OwlConfig
from owl_fast.files import write_json
from owl_fast.models.batch import PackedBatch
from owl_fast.prompts import IMAGE_ID, encode, raw_pieces
from owl_fast.tokenizer import Tokenizer

TOKENIZER_FOLDER = ROOT / "owl_fast/assets/owl-nano"
PROMPT = "Human: <image>\nHuman: What is in the picture?\nAI: "
ALLOWANCE = 500_000_000  # bytes beyond the model and two of its largest tensors: the interpreter and torch
READ_BYTES = 8 << 20
LOADS = {"7b": 1, "tiny": 3}


def config_of(size: str) -> OwlConfig:
    full = OwlConfig.mplug_owl_7b()
    if size == "7b":
        return full
    return replace(
        full,
        vision=replace(full.vision, hidden_size=64, intermediate_size=128, num_hidden_layers=2),
        abstractor=replace(
            full.abstractor, hidden_size=64, encoder_hidden_size=64, intermediate_size=96, num_hidden_layers=2
        ),
        llama=replace(
            full.llama,
            vocab_size=1024,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
    )


def run(args: argparse.Namespace) -> list[Row]:
    """Make the folder, read it, load it, and compare with the limits."""
    config = config_of(args.size)
    infos = {
        name: TensorInfo(tuple(view.shape), torch.bfloat16)
        for name, view in views(empty_model(config)).items()
    }
    size = sum(info.nbytes for info in infos.values())
    _check_room(args.work_dir, size)
    folder = Path(tempfile.mkdtemp(prefix="owl-load-", dir=args.work_dir))
    try:
        make_folder(folder, config, infos)
        measured = _measure(folder, LOADS[args.size])
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return _rows(args.size, measured, size)


def make_folder(folder: Path, config: OwlConfig, infos: dict[str, TensorInfo]) -> None:
    """A model folder with random weights, written shard by shard."""
    generator = torch.Generator().manual_seed(0)

    def random_weight(name: str) -> Tensor:
        weight = torch.empty(infos[name].shape, dtype=infos[name].dtype).normal_(0, 0.02, generator=generator)
        return weight.add_(1) if "norm" in name and name.endswith("weight") else weight

    shard_bytes = max(sum(info.nbytes for info in infos.values()) // 8, 1)
    write_weights(folder, infos, random_weight, shard_bytes=shard_bytes)
    write_json(folder / "config.json", config.to_dict())
    copy_side_files(TOKENIZER_FOLDER, folder)


def load_and_answer(folder: Path) -> dict[str, Any]:
    """Load the folder and compute one greedy token after a picture and a short prompt."""
    with MemoryPeak() as load_peak:
        start = time.perf_counter()
        model = load_model(folder)
        seconds = time.perf_counter() - start
    ids = encode(raw_pieces(PROMPT), Tokenizer.from_file(folder / "tokenizer.model"), model.config.image_rows)
    side = model.config.vision.image_size
    with MemoryPeak() as token_peak, torch.inference_mode():
        start = time.perf_counter()
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        batch = PackedBatch.from_sequences([ids], model.encode_images(pixels).flatten(0, 1))
        logits = model.logits(model(batch)[-1:])
        token = int(logits.argmax())
        token_seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak": load_peak.value,
        "token_peak": token_peak.value,
        "model": sum(parameter.nbytes for parameter in model.parameters()),
        "largest": max(view.nbytes for view in views(model).values()),
        "rows": len(ids),
        "pictures": ids.count(IMAGE_ID) // model.config.image_rows,
        "token": token,
        "token_seconds": token_seconds,
        "finite": bool(logits.isfinite().all()),
    }


def _check_room(work_dir: Path, size: int) -> None:
    needed = int(size * 1.05) + ALLOWANCE
    if (free := shutil.disk_usage(work_dir).free) < needed:
        fail(f"{work_dir}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; choose another --work-dir")
    if (free := available_bytes()) < needed:
        fail(f"{free / 1e9:.1f} GB of memory free, {needed / 1e9:.1f} GB needed; --size tiny runs anywhere")


def _measure(folder: Path, loads: int) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of plain reads and results of loads, alternating, each from a cold file cache."""
    files = sorted(folder.glob("*.safetensors"))
    reads, results = [], []
    for _ in range(loads):
        reads.append(_read_plainly(files))
        for file in files:
            forget_cached(file)
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.cases.load", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        if child.returncode:
            fail(f"the loading process ended with code {child.returncode}")
        results.append(json.loads(child.stdout))
    reads.append(_read_plainly(files))
    return reads, results


def _read_plainly(files: list[Path]) -> float:
    """Seconds to read the files from beginning to end into one small buffer, from a cold cache."""
    for file in files:
        forget_cached(file)
    buffer = bytearray(READ_BYTES)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - start


def _rows(name: str, measured: tuple[list[float], list[dict[str, Any]]], size: int) -> list[Row]:
    reads, results = measured
    first = results[0]
    limit = first["model"] + 2 * first["largest"] + ALLOWANCE
    shape = f"{name}-bf16-{size / 1e9:.2f}GB"
    read_rate = row("load", shape, "sequential read", "throughput", "GB/s", [size / t / 1e9 for t in reads])
    rows = [
        read_rate,
        row("load", shape, "owl_fast", "seconds", "s", [r["seconds"] for r in results]),
        row(
            "load",
            shape,
            "owl_fast",
            "throughput",
            "GB/s",
            [size / r["seconds"] / 1e9 for r in results],
            limit=read_rate.median,
        ),
        row("load", shape, "owl_fast", "peak memory", "GB", [r["peak"] / 1e9 for r in results], limit / 1e9),
        row(
            "load",
            f"{shape}-{first['rows']}rows-{first['pictures']}image",
            "owl_fast",
            "first token",
            "s",
            [r["token_seconds"] for r in results],
        ),
        row(
            "load",
            shape,
            "owl_fast",
            "peak memory with a token",
            "GB",
            [r["token_peak"] / 1e9 for r in results],
            limit / 1e9,
        ),
    ]
    for result in results:
        if result["peak"] > limit:
            fail(f"loading took {result['peak'] / 1e9:.2f} GB; the limit is {limit / 1e9:.2f} GB")
        if not result["finite"]:
            fail("the logits of the first token are not finite")
    return rows


if __name__ == "__main__":
    print(json.dumps(load_and_answer(Path(sys.argv[1]))))
