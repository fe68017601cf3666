"""load: a model folder of full size, from disk to its first token, within the memory limit.

The folder (random bfloat16 weights, .safetensors shards) is made on the spot. A fresh process loads it while
a thread samples its anonymous and shared memory; the limit is the model, two of its largest tensors and
0.5 GB (on a GPU, where the model's memory is counted, without the last). With --quant it is quantized
meanwhile, and the model is the quantized one. The peer is a plain sequential read
of the same bytes in the same run; both start with a cold cache. A start is everything from the new process
to the first token: cold with nothing cached, neither files nor compiled kernels, warm with both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import ROOT, Row, row
from benchmarks.memory import MemoryPeak, available_bytes, forget_cached
from benchmarks.models import NANO, config_of
from benchmarks.suites import sized
from owl_fast.checkpoints import copy_side_files, load_model, open_source
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.mapped import TensorInfo
from owl_fast.checkpoints.names import views
from owl_fast.checkpoints.writer import write_weights
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.engine import Engine
from owl_fast.engine.placement import pick_device
from owl_fast.errors import OwlError
from owl_fast.files import write_json
from owl_fast.images import ImageProcessor
from owl_fast.tokenizer import Tokenizer

PROMPT = "Human: <image>\nHuman: What is in the picture?\nAI: "
ALLOWANCE = 500_000_000  # bytes beyond the model and two of its largest tensors: the interpreter and torch
READ_BYTES = 8 << 20
LOADS = {"7b-random": 1, "nano": 3, "quick": 2, "tiny": 1}


def run(args: argparse.Namespace) -> list[Row]:
    """Make the folder, read it, load it, and compare with the limits."""
    config, device = config_of(args.model), pick_device(args.device)
    infos = {
        name: TensorInfo(tuple(view.shape), torch.bfloat16)
        for name, view in views(empty_model(config)).items()
    }
    size = sum(info.nbytes for info in infos.values())
    _check_room(args.work_dir, size)
    folder = Path(tempfile.mkdtemp(prefix="owl-load-", dir=args.work_dir))
    try:
        make_folder(folder, config, infos, device)
        measured = _measure(folder, device, args.quant, sized(LOADS, args))
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    named = Path(args.model).name
    name = named if args.quant == "none" else f"{named}-{args.quant}"
    return _rows(name, measured, size)


def make_folder(folder: Path, config: OwlConfig, infos: dict[str, TensorInfo], device: torch.device) -> None:
    """A model folder with random weights, written shard by shard. device: where the numbers are drawn."""
    generator = torch.Generator(device).manual_seed(0)

    def random_weight(name: str) -> Tensor:
        empty = torch.empty(infos[name].shape, dtype=infos[name].dtype, device=device)
        weight = empty.normal_(0, 0.02, generator=generator).cpu()
        return weight.add_(1) if "norm" in name and name.endswith("weight") else weight

    shard_bytes = max(sum(info.nbytes for info in infos.values()) // 8, 1)
    write_weights(folder, infos, random_weight, shard_bytes=shard_bytes)
    write_json(folder / "config.json", config.to_dict())
    copy_side_files(NANO, folder)


def load_and_answer(folder: Path, device: torch.device, quant: str, started: float) -> dict[str, Any]:
    """Load the folder and answer with one greedy token after a picture and a short prompt.

    started: time.monotonic() of the process that asked for this one, when it did.
    """
    held = None if quant == "none" else Quantization(quant)
    with MemoryPeak() as load_peak:
        start = time.perf_counter()
        model = load_model(folder, device=device, quantization=held)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    device_peak = _device_peak(device)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
    processor = ImageProcessor(size=model.config.vision.image_size)
    engine = Engine(model, tokenizer, processor, max_context=256, max_batch=1)
    picture = torch.zeros(3, processor.size, processor.size, dtype=torch.uint8)
    with MemoryPeak() as token_peak:
        start = time.perf_counter()
        answer = engine.generate(PROMPT, images=[picture], max_tokens=1, temperature=0.0)
        token_seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "start_seconds": time.monotonic() - started,
        "token_seconds": token_seconds,
        "host": load_peak.value,
        "peak": device_peak or load_peak.value,
        "token_peak": _device_peak(device) or token_peak.value,
        "model": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        "largest": max(entry.info.nbytes for entry in open_source(folder).weights.entries.values()),
        "rows": answer.usage.prompt_tokens,
    }


def _device_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _check_room(work_dir: Path, size: int) -> None:
    needed = int(size * 1.05) + ALLOWANCE
    if (free := shutil.disk_usage(work_dir).free) < needed:
        raise OwlError(
            f"{work_dir}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; choose another --work-dir"
        )
    if (free := available_bytes()) < needed:
        raise OwlError(
            f"{free / 1e9:.1f} GB of memory free, {needed / 1e9:.1f} GB needed; --model tiny runs anywhere"
        )


def _measure(
    folder: Path, device: torch.device, quant: str, loads: int
) -> tuple[list[float], list[dict[str, Any]], list[dict[str, Any]]]:
    """Seconds of plain reads, results of cold and of warm starts; reads and cold starts in turns, each from a
    cold file cache."""
    files = sorted(folder.glob("*.safetensors"))
    reads, cold, warm = [], [], []
    for _ in range(loads):
        reads.append(_read_plainly(files))
        for file in files:
            forget_cached(file)
        with tempfile.TemporaryDirectory(prefix="owl-kernels-") as kernels:
            cold.append(_start(folder, device, quant, kernels))
            warm.append(_start(folder, device, quant, kernels))
    reads.append(_read_plainly(files))
    return reads, cold, warm


def _start(folder: Path, device: torch.device, quant: str, kernels: str) -> dict[str, Any]:
    """What load_and_answer found in a process of its own. kernels: where compiled ones are cached."""
    child = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.cases.load"),
            *(str(folder), str(device), quant, str(time.monotonic())),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": kernels},
    )
    if child.returncode:
        raise OwlError(f"the loading process ended with code {child.returncode}")
    return json.loads(child.stdout)


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


def _rows(
    name: str, measured: tuple[list[float], list[dict[str, Any]], list[dict[str, Any]]], size: int
) -> list[Row]:
    reads, cold, warm = measured
    first = cold[0]
    on_device = first["peak"] != first["host"]
    limit = first["model"] + 2 * first["largest"] + (0 if on_device else ALLOWANCE)
    for result in cold + warm:
        if result["peak"] > limit:
            raise OwlError(f"loading took {result['peak'] / 1e9:.2f} GB; the limit is {limit / 1e9:.2f} GB")
    shape = f"{name}-bf16-{size / 1e9:.2f}GB"
    where = "load", shape, "owl_fast"
    token = "load", f"{shape}-{first['rows']}rows", "owl_fast"
    rates = [size / seconds / 1e9 for seconds in reads]
    read = row("load", shape, "sequential read", "throughput", "GB/s", rates)

    def values(results: list[dict[str, Any]], key: str, unit: float = 1) -> list[float]:
        return [result[key] / unit for result in results]

    rows = [
        read,
        row(*where, "seconds", "s", values(cold, "seconds")),
        row(*where, "throughput", "GB/s", [size / s / 1e9 for s in values(cold, "seconds")], read.median),
        row(*where, "peak memory", "GB", values(cold, "peak", 1e9), limit / 1e9),
        row(*token, "first token", "s", values(cold, "token_seconds")),
        row(*token, "peak memory with a token", "GB", values(cold, "token_peak", 1e9), limit / 1e9),
        row(*token, "cold start", "s", values(cold, "start_seconds")),
        row(*token, "warm start", "s", values(warm, "start_seconds")),
    ]
    if on_device:
        rows.append(row(*where, "peak host memory", "GB", values(cold, "host", 1e9)))
    return rows


if __name__ == "__main__":
    path, place, quant, since = sys.argv[1:]
    print(json.dumps(load_and_answer(Path(path), torch.device(place), quant, float(since))))
