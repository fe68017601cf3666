"""memory: the most memory that an answer and a training step take as they grow longer.

answers    one request whose prompt and answer fill the context; the least is the weights and a full cache
training   stage 2, one sample of growing length beside transformers and peft; the least is weights, gradients
           and the states of the optimizer, as owl_fast holds them

Each contender has a process of its own. On a CPU what counts is anonymous memory over what the process held
before the model was there, on a GPU what torch allocated. Of the limit: the least over what was taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import torch
from tqdm import tqdm

from benchmarks import models, training
from benchmarks.cases import train
from benchmarks.cases.throughput.load import Load, times_of
from benchmarks.harness import ROOT, Row, absent, row
from benchmarks.memory import MemoryPeak, release_to_system, resident_bytes
from benchmarks.peers import LEFT_OUT, is_wanted, transformers_llama
from benchmarks.steps import OURS
from benchmarks.suites import sized
from benchmarks.training import Work
from owl_fast.config import LlamaConfig
from owl_fast.engine.inputs import PreparedPrompt
from owl_fast.engine.kv_cache import cache_dtype, position_bytes
from owl_fast.engine.placement import pick_device
from owl_fast.models.owl import Owl

CONTEXTS = {
    "7b-random": (512, 2048, 4096),
    "nano": (512, 1024, 2048, 4096),
    "quick": (512, 2048),
    "tiny": (64,),
}
LENGTHS = {
    "7b-random": (512, 1024, 2048),
    "nano": (128, 256, 512),
    "quick": (64, 256),
    "tiny": (16,),
}
TOKENS = 8  # of the answer; the prompt is the rest of the context
SETTINGS = {OURS: {}, f"{OURS}, int8 cache": {"kv_cache": "int8"}}
ANSWERING = (*SETTINGS, transformers_llama.GENERATE)
NEEDS = "transformers.generate needs 16 bit weights or more"


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    return _answers(args, device) + _training(args, device)


def _answers(args: argparse.Namespace, device: torch.device) -> list[Row]:
    rows = []
    shapes = models.shapes(args.model, device, args.quant)
    for context in tqdm(sized(CONTEXTS, args), desc="memory of answers", leave=False, disable=None):
        where = "memory", f"{models.title(args.model, shapes)} C{context}"
        for name in ANSWERING:
            found = _answering(args, device, name, context)
            if isinstance(found, str):
                rows.append(absent(*where, name, "peak memory", "GB", found))
            else:
                rows.append(_row(where, name, found["peak"], found["least"]))
    return rows


def _answering(
    args: argparse.Namespace, device: torch.device, name: str, context: int
) -> dict[str, int] | str:
    """What answer_alone() found in a process of its own, or why there was none."""
    if name not in SETTINGS and args.quant != "none":
        return NEEDS
    if name not in SETTINGS and not is_wanted(name, args):
        return LEFT_OUT
    given = {
        "model": args.model,
        "quant": args.quant,
        "device": str(device),
        "context": context,
        "name": name,
    }
    command = [sys.executable, "-m", "benchmarks.cases.memory", json.dumps(given)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if child.returncode:
        *_, last = child.stderr.strip().splitlines() or [f"it ended with code {child.returncode}"]
        return f"{last:.160}"
    found: dict[str, int] = json.loads(child.stdout)
    return found


def answer_alone(model: str, quant: str, device: str, context: int, name: str) -> dict[str, int]:
    """Bytes: peak, and the least that weights and cache of so many positions take."""
    where = torch.device(device)
    _answered(models.random_model("tiny", where), name, 16)  # modules, threads and libraries are there
    models.random_model.cache_clear()
    release_to_system()
    before = resident_bytes()
    with MemoryPeak(0.002) as peak:
        made = models.random_model(model, where, quantization=models.quantization_of(quant))
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _answered(made, name, context)
    held = sum(tensor.nbytes for tensor in (*made.parameters(), *made.buffers()))
    kept_as = cache_dtype(SETTINGS.get(name, {}).get("kv_cache", "auto"), made.dtype)
    cache = context * position_bytes(made.config.llama, kept_as)
    taken = torch.cuda.max_memory_allocated() if where.type == "cuda" else peak.value - before
    return {"peak": taken, "least": held + cache}


def _answered(model: Owl, name: str, context: int) -> None:
    """One request that fills the context."""
    llama = model.config.llama
    prompts = Load(1, context - TOKENS, TOKENS, 1).prompts(0, llama.vocab_size, llama.bos_token_id)
    if name not in SETTINGS:
        transformers_llama.generator(model)(prompts, TOKENS)
        return
    asked = models.usual_engine(model, context, 1, **SETTINGS[name])
    times_of(asked, [PreparedPrompt(ids, []) for ids in prompts], TOKENS)


def _training(args: argparse.Namespace, device: torch.device) -> list[Row]:
    llama = LlamaConfig() if device.type == "cuda" else train.CPU_LLAMA
    llama = train.QUICK_LLAMA if args.suite == "quick" else llama
    rows = []
    for length in sized(LENGTHS, args):
        work = Work("", 2, device.type, llama, 1, length, length // 2)
        work = replace(training.tiny(work), samples=1) if args.model == "tiny" else work
        wanted = {name: name in training.OURS or is_wanted(name, args) for name in training.FEW}
        found = train.measured(work, [name for name in training.FEW if wanted[name]], steps=1)
        where = (
            "memory",
            f"stage 2, {work.llama.hidden_size} x {work.llama.num_hidden_layers} layers, {work.length} rows",
        )
        for name in training.FEW:
            if trouble := LEFT_OUT if not wanted[name] else found.troubles.get(name):
                rows.append(absent(*where, name, "peak memory", "GB", trouble))
                continue
            own = training.OURS.get(name)
            least = training.OURS[OURS].least(work)
            rows.append(_row(where, name, found.peaks[name], least))
            if own is not None:
                rows.append(row(*where, name, "planned memory", "GB", [own.planned(work) / 1e9]))
    return rows


def _row(where: tuple[str, str], name: str, peak: int, least: int) -> Row:
    return replace(
        row(*where, name, "peak memory", "GB", [peak / 1e9]), limit_fraction=least / peak if peak else None
    )


if __name__ == "__main__":
    print(json.dumps(answer_alone(**json.loads(sys.argv[1]))))
