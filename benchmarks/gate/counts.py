"""Work whose cost is counted: launches and bytes on a GPU at the shapes of the 7B model, calls and bytes of
owl-nano on a CPU.

What would run on a GPU is recorded on tensors without contents: that needs Triton, but no GPU. Each piece of
work is done once before it is counted, for tables of angles and what else is made only once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.gate.counting import Operators, native_calls, nbytes, python_calls, weight_bytes
from benchmarks.live_memory import LiveMemory
from benchmarks.training import LORA
from owl_fast import native
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.blocks import blocks_for
from owl_fast.engine.graphs import DecodeInputs
from owl_fast.engine.kv_cache import KVCache
from owl_fast.engine.sampling import SamplingParams
from owl_fast.kernels import cpu_calls, launch
from owl_fast.kernels.launch import Launch
from owl_fast.models.batch import PackedBatch, PagedCache
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID
from owl_fast.training import STAGE1, EncodedSample, stage2
from owl_fast.training.memory_plan import MicroBatch, Planner, Setup
from owl_fast.training.objective import token_loss
from owl_fast.training.packing import IGNORED, TrainingBatch, pack
from owl_fast.training.stages import Stage

META, CPU = torch.device("meta"), torch.device("cpu")
GPU = 90  # compute capability
STAGE2 = stage2(LORA)
TEXT = 100  # tokens of a prompt, behind a picture
SAMPLES, NANO_SAMPLES = (
    (2, 1024, 300),
    (2, 64, 20),
)  # of a training step: how many, rows of each, learned rows
ANSWERS, STEPS = 8, 16  # of the engine that runs
Counts = dict[str, int]


@dataclass(frozen=True)
class Work:
    """needs: what it runs on, a name in ABSENT. count: its costs by name."""

    needs: str
    count: Callable[[], Counts]


def _no_triton() -> str | None:
    with launch.recording(GPU):
        return None if launch.supports(META) else "Triton is not installed: pip install triton"


def _no_library() -> str | None:
    found = native.status()
    return f"{found.reason}: `pip install .` or `make native`" if found.library is None else None


# Why it is not there; None: it is.
ABSENT: Mapping[str, Callable[[], str | None]] = {"Triton": _no_triton, "libowl_cpu": _no_library}


def launched(work: Callable[[], object]) -> tuple[list[Launch], Counts]:
    """Launches of Triton's kernels, torch's operators beside them, and the most bytes that all their results
    take at a time."""
    with launch.recording(GPU) as recorder:
        work()
        recorder.launches.clear()
        with Operators() as operators, LiveMemory() as memory:
            work()
    return recorder.launches, {
        "kernel launches": len(recorder.launches),
        "torch operators": operators.computing,
        "bytes at a time": memory.peak,
    }


def handed(launches: list[Launch]) -> Counts:
    return {"bytes handed to kernels": nbytes(launch.args for launch in launches)}


@functools.cache
def owl_7b(scheme: str | None) -> Owl:
    config = replace(OwlConfig.mplug_owl_7b(), quantization=None if scheme is None else Quantization(scheme))
    with META:
        return Owl(config).to(torch.bfloat16).requires_grad_(False).eval()


@torch.no_grad()
def gpu_decode(scheme: str | None, rows: int) -> Counts:
    model = owl_7b(scheme)
    cache = KVCache(model.config.llama, 128, torch.bfloat16, META)
    inputs = DecodeInputs(cache, rows, 8, META)
    launches, found = launched(lambda: model.logits(model(inputs.batch)))
    return found | {"weight bytes": weight_bytes(model, (launch.args for launch in launches))}


@torch.no_grad()
def gpu_prefill(scheme: str | None) -> Counts:
    """Rows of a picture that is already encoded, and text."""
    model = owl_7b(scheme)
    batch = behind_cache(model)
    launches, found = launched(lambda: model.logits(model(batch)[-1:]))
    return found | handed(launches)


@torch.no_grad()
def gpu_picture() -> Counts:
    model = owl_7b(None)
    pixels = picture(model.config)[None].to(META, torch.bfloat16)
    launches, found = launched(lambda: model.encode_images(pixels))
    return found | handed(launches)


def gpu_training(stage: Stage, scheme: str | None) -> Counts:
    """Forward and backward in the dtype of the weights: tensors without contents know no autocast."""
    model = owl_7b.__wrapped__(scheme)  # one of its own: what trains becomes float32
    launches, found = launched(training_step(model, stage, SAMPLES))
    return found | handed(launches)


def called(work: Callable[[], object]) -> Counts:
    """Calls into libowl_cpu, torch's operators beside them, and the most bytes their
    results take at a time."""
    with native_calls() as calls:
        work()
        calls.clear()
        with Operators() as operators, LiveMemory() as memory:
            work()
    return {
        "native calls": calls.total(),
        "torch operators": operators.computing,
        "bytes at a time": memory.peak,
    }


def nano(dtype: torch.dtype, scheme: str | None, laid_out: bool = True) -> Owl:
    quantization = None if scheme is None else Quantization(scheme)
    return models.made(models.config_of("nano"), dtype, CPU, quantization, laid_out)


@torch.no_grad()
def cpu_decode(scheme: str | None, dtype: torch.dtype, rows: int) -> Counts:
    model = nano(dtype, scheme)
    inputs = DecodeInputs(KVCache(model.config.llama, 64, dtype, CPU), rows, 8, CPU)
    found = called(lambda: model.logits(model(inputs.batch)))
    with cpu_calls.recording() as calls:
        model.logits(model(inputs.batch))
    return found | {"weight bytes": weight_bytes(model, (call.kept for call in calls))}


@torch.no_grad()
def cpu_prefill(scheme: str | None) -> Counts:
    model = nano(torch.float32, scheme)
    batch = behind_cache(model)
    return called(lambda: model.logits(model(batch)[-1:]))


@torch.no_grad()
def cpu_picture() -> Counts:
    model = nano(torch.float32, None)
    pixels = picture(model.config)[None]
    return called(lambda: model.encode_images(pixels))


def cpu_training(stage: Stage, scheme: str | None) -> Counts:
    """Forward and backward under bf16 autocast."""
    model = nano(torch.bfloat16, scheme, laid_out=False)
    found = called(training_step(model, stage, NANO_SAMPLES))
    samples, length, learned = NANO_SAMPLES
    setup = Setup(
        replace(model.config, quantization=None if scheme is None else Quantization(scheme)), stage, CPU
    )
    planned = Planner(setup).plan(MicroBatch(samples, samples * length, samples * learned, samples)).total
    return found | {"bytes planned": planned}


def cpu_engine() -> Counts:
    """Answers of an engine, all together, then one of their steps: sampling and text included, everything
    replayed that can be. Python calls are the mean of some steps, rounded up."""
    asked = models.engine(nano(torch.float32, "int4"), max_context=128, max_batch=ANSWERS)
    prompt = models.prompt_of(32, asked)
    short, long = (
        SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True) for tokens in (STEPS, STEPS + 8)
    )
    asked.generate([{"prompt": prompt}] * ANSWERS, short)
    needed = asked.stats().steps
    streams = [asked.stream(prompt, long) for _ in range(ANSWERS)]
    for stream in (*streams, *streams):
        next(stream)
    recorder = asked._runner._recorder
    while recorder is not None and recorder._wanted:  # another thread records
        time.sleep(0.01)
    next(streams[-1])  # is compared with the recording
    before = asked.stats().steps
    with native_calls() as calls:  # replayed ones go past it
        python = python_calls(lambda: [next(streams[-1]) for _ in range(STEPS)])
    steps = asked.stats().steps - before
    for stream in streams:
        stream.close()
    assert steps == STEPS, steps
    return {
        "steps of all answers": needed,
        "native calls": calls.total(),
        "Python calls": -(-python // steps),
    }


def training_step(model: Owl, stage: Stage, sizes: tuple[int, int, int]) -> Callable[[], None]:
    """One without an optimizer, under autocast where a CPU holds the weights in bf16."""
    bf16 = model.device == CPU and model.dtype == torch.bfloat16  # before what trains becomes float32
    trained = stage.apply(model.train())
    batch = training_batch(model.config, *sizes).to(model.device)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = token_loss(model, batch)
        torch.autograd.backward(loss)
        for parameter in trained.values():
            parameter.grad = None

    return step


def training_batch(config: OwlConfig, samples: int, length: int, learned: int) -> TrainingBatch:
    """A picture and text in each sample, of which the end is learned."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(samples):
        text = torch.randint(3, 512, (length - config.image_rows,), generator=generator).tolist()
        ids = [IMAGE_ID] * config.image_rows + text
        labels = [IGNORED] * (length - learned) + ids[-learned:]
        made.append(EncodedSample(ids, labels, [picture(config)]))
    return pack(made, config.image_rows)


def picture(config: OwlConfig) -> Tensor:
    side = config.vision.image_size
    return torch.zeros(3, side, side)


def behind_cache(model: Owl) -> PackedBatch:
    """A whole prompt, keys and values in a paged cache; rows of a picture come first."""
    config, device = model.config, model.device
    ids = [IMAGE_ID] * config.image_rows + [5] * TEXT
    rows = torch.zeros(config.image_rows, config.llama.hidden_size, dtype=model.dtype, device=device)
    batch = PackedBatch.from_sequences([ids], rows, device=device)
    blocks, length = blocks_for(len(ids)), len(ids)
    cache = KVCache(config.llama, blocks, model.dtype, device)
    paged = PagedCache(
        layers=cache.layers,
        slot_mapping=torch.arange(length, device=device),
        block_tables=torch.arange(blocks, dtype=torch.int32, device=device)[None],
        context_lens=torch.tensor([length], dtype=torch.int32, device=device),
        lengths=(length,),
    )
    return replace(batch, cache=paged)


WORK = {
    "7B decode step, bf16, 1 row": Work("Triton", lambda: gpu_decode(None, 1)),
    "7B decode step, int8, 1 row": Work("Triton", lambda: gpu_decode("int8", 1)),
    "7B decode step, int4, 1 row": Work("Triton", lambda: gpu_decode("int4", 1)),
    "7B decode step, int4, 64 rows": Work("Triton", lambda: gpu_decode("int4", 64)),
    "7B prefill, bf16": Work("Triton", lambda: gpu_prefill(None)),
    "7B prefill, int4": Work("Triton", lambda: gpu_prefill("int4")),
    "7B picture": Work("Triton", gpu_picture),
    "7B training step, stage 1": Work("Triton", lambda: gpu_training(STAGE1, None)),
    "7B training step, stage 2, int4": Work("Triton", lambda: gpu_training(STAGE2, "int4")),
    "nano decode step, bf16, 1 row": Work("libowl_cpu", lambda: cpu_decode(None, torch.bfloat16, 1)),
    "nano decode step, int8, 1 row": Work("libowl_cpu", lambda: cpu_decode("int8", torch.float32, 1)),
    "nano decode step, int4, 8 rows": Work("libowl_cpu", lambda: cpu_decode("int4", torch.float32, 8)),
    "nano prefill, int4": Work("libowl_cpu", lambda: cpu_prefill("int4")),
    "nano picture": Work("libowl_cpu", cpu_picture),
    "nano engine step, int4, 8 rows": Work("libowl_cpu", cpu_engine),
    "nano training step, stage 1": Work("libowl_cpu", lambda: cpu_training(STAGE1, None)),
    "nano training step, stage 2, int4": Work("libowl_cpu", lambda: cpu_training(STAGE2, "int4")),
}
