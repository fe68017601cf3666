"""serve: what clients of the server wait for their answers under a growing load, over HTTP.

Every contender is a process of its own, and so is the load generator. First clients that wait for their
answers: one, and as many as there are places in a batch; what those get in a second is the capacity. Then
requests at random moments (a Poisson process, the same for all), whatever became of those before, at shares
of that capacity, and more until owl_fast no longer keeps up. Texts stand beside a small server around
transformers and llama-cpp-python's own; with a picture, one for all requests or another one for each,
owl_fast is alone.

--only TEXT: the kinds with TEXT in their name.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from benchmarks import models
from benchmarks.cases.serving import servers
from benchmarks.cases.serving.asked import DIFFERENT, KINDS, SHARED, TEXT, Asker, Size
from benchmarks.cases.serving.client import ANSWERED
from benchmarks.cases.serving.load import PERCENTILES, Load, Seen, measure, percentile
from benchmarks.cases.serving.servers import Server
from benchmarks.harness import COUNT, Row, absent, row
from benchmarks.peers import chosen, llama_cpp_server
from benchmarks.steps import OURS
from benchmarks.suites import sized
from benchmarks.timing import attempt, machine, release
from benchmarks.vocabulary import words
from owl_fast.checkpoints import save_model
from owl_fast.engine.placement import pick_device, pick_dtype
from owl_fast.errors import OwlError
from owl_fast.export.vocabulary import filled
from owl_fast.images import ImageProcessor
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer

SIZES = {
    "quick": Size(64, 32, seconds=1, patience=2, most=150, shares=(0.3, 0.8, 1.3), more=0),
    "nano": Size(prompt=64, answer=32, seconds=6, patience=10, most=150),
    "7b-random": Size(prompt=512, answer=128, seconds=30, patience=60, most=50),
    "tiny": Size(prompt=8, answer=4, seconds=1, patience=10, most=50),
}
CPU_SIZES = SIZES | {"7b-random": Size(prompt=32, answer=16, seconds=60, patience=60, most=2)}
BATCH = 8  # rows our engine computes at once, and clients that fill it
CLOSED = Load(clients=1), Load(clients=BATCH)
FACTOR = 1.5  # between the loads that go on until ours does not keep up:
KEEPS_UP = 0.9  # such a share of what is offered is answered in time
MARGIN = 256  # positions beside those of the text and the answer: the header of a conversation, a picture
SERVER = [sys.executable, "-m", "owl_fast.serve"]
TRANSFORMERS = "transformers server"
NEEDS = "transformers.generate needs 16 bit weights or more"

Start = Callable[[], AbstractContextManager[Server]] | str  # or why it takes no part


class Point(NamedTuple):
    """seen: or why there is nothing to see."""

    kind: str
    load: Load
    contender: str
    seen: Seen | str


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    size = sized(CPU_SIZES if device.type == "cpu" else SIZES, args)
    model = models.shapes(args.model, device, args.quant)
    kinds = [kind for kind in KINDS if args.only in kind]
    if not kinds:
        raise OwlError(f"--only {args.only}: no such kind of requests; there are {', '.join(KINDS)}")
    with _folder(args, device) as folder:
        points = _measured(_starts(args, device, folder, size), kinds, folder, size, device)
    title = models.title(args.model, model)
    return [found for point in points for found in _rows(point, f"{title} {point.kind}", model, device, size)]


def limit(model: Owl, kind: str, size: Size, device: torch.device) -> float:
    """Tokens/s that the machine allows at most to a batch of requests, prompts included; what they share is
    not counted."""
    of, rows = machine(device).floor, 0 if kind == TEXT else model.config.image_rows
    cached = rows if kind == SHARED else 0
    context = rows + size.prompt
    prompts = of(models.language_effort(model, BATCH * (context - cached), BATCH, cached))
    pictures = BATCH * of(models.picture_effort(model)) if kind == DIFFERENT else 0.0
    answers = sum(map(of, models.answer_efforts(model, BATCH, context, size.answer)))
    return BATCH * size.answer / (prompts + pictures + answers)


@contextmanager
def _folder(args: argparse.Namespace, device: torch.device) -> Iterator[Path]:
    """Of the model: owl-nano as it is, other sizes with random weights and a text for every token."""
    if args.model == "nano":
        yield models.NANO
        return
    config, vocabulary = models.config_of(args.model), _vocabulary(models.NANO)
    quantization = models.quantization_of(args.quant)
    with tempfile.TemporaryDirectory(prefix="owl-serve-", dir=args.work_dir) as made:
        folder = Path(made) / Path(args.model).name
        save_model(
            models.made(config, pick_dtype("auto", device, config), device, quantization, laid_out=False),
            folder,
            tokenizer=filled(vocabulary, config.llama.vocab_size),
            preprocessor=ImageProcessor(size=config.vision.image_size).to_dict(),
        )
        yield folder


def _vocabulary(folder: Path) -> bytes:
    return (folder / "tokenizer.model").read_bytes()


def _starts(args: argparse.Namespace, device: torch.device, folder: Path, size: Size) -> Mapping[str, Start]:
    context = size.prompt + size.answer + MARGIN
    flags = ["--device", str(device)]
    quant = args.quant if args.model == "nano" else "auto"  # others hold their weights as asked
    engine = ["--quant", quant, "--max-context", str(context), "--max-batch", str(BATCH)]
    ours = [*SERVER, str(folder), *flags, *engine]
    starts: dict[str, Start] = {OURS: partial(servers.running, ours, ready="/ready")}
    theirs = [sys.executable, "-m", "benchmarks.peers.transformers_server", str(folder), *flags]
    starts[TRANSFORMERS] = partial(servers.running, theirs) if args.quant == "none" else NEEDS
    if device.type == "cpu":
        llama, vocabulary = models.config_of(args.model).llama, _vocabulary(folder)
        named = llama_cpp_server.name(args.quant)
        command = attempt(lambda: llama_cpp_server.command(args.gguf, llama, args.quant, vocabulary, context))
        starts[named] = (
            command
            if isinstance(command, str)
            else partial(servers.running, command, llama_cpp_server.EXTRAS)
        )
    return chosen(starts, args)


def _measured(
    starts: Mapping[str, Start], kinds: Sequence[str], folder: Path, size: Size, device: torch.device
) -> list[Point]:
    """On a CPU all servers are there at once and take turns, load by load; on a GPU each has the memory to
    itself."""
    asker = Asker(words(Tokenizer.from_file(folder / "tokenizer.model")), size)
    groups = [[*starts]] if device.type == "cpu" else [[name] for name in starts]
    points: list[Point] = []
    for group in groups:
        release(device)
        with ExitStack() as open_ones, tqdm(desc="serve", unit="load", leave=False, disable=None) as bar:
            up = {name: _opened(open_ones, name, starts[name], asker, size) for name in group}
            for kind in kinds:
                asked = {name: server for name, server in up.items() if kind == TEXT or name == OURS}
                for load in _loads(points, kind, size):
                    points += [_point(kind, load, *contender, asker, size) for contender in asked.items()]
                    bar.update(len(asked))
    return sorted(points, key=lambda point: (KINDS.index(point.kind), point.load.offered or 0.0))


def _opened(open_ones: ExitStack, name: str, start: Start, asker: Asker, size: Size) -> Server | str:
    """A server that has been warmed up by as many clients as will ask it."""
    if isinstance(start, str):
        return start

    def opened() -> Server:
        server = open_ones.enter_context(start())
        measure(server, TEXT, CLOSED[-1], asker, size._replace(seconds=min(1.0, size.seconds)))
        return server

    return opened() if name == OURS else attempt(opened)


def _point(kind: str, load: Load, name: str, server: Server | str, asker: Asker, size: Size) -> Point:
    if isinstance(server, str):
        return Point(kind, load, name, server)
    run = partial(measure, server, kind, load, asker, size)
    return Point(kind, load, name, run() if name == OURS else attempt(run))


def _loads(points: list[Point], kind: str, size: Size) -> Iterator[Load]:
    """Those that ours has met; else those it is to meet: `points` has what became of it under the last."""
    mine = (point for point in points if (point.kind, point.contender) == (kind, OURS))
    if met := [point.load for point in mine]:
        yield from met
        return
    yield from CLOSED
    capacity = _rate(points, kind, CLOSED[-1])
    for share in size.shares:
        yield (load := _rounded(share * capacity))
    for _ in range(size.more):
        assert load.offered is not None
        if _rate(points, kind, load) < KEEPS_UP * load.offered:
            return
        yield (load := _rounded(FACTOR * load.offered))


def _rate(points: Sequence[Point], kind: str, load: Load) -> float:
    """Requests/s that ours answered."""
    (seen,) = (p.seen for p in points if (p.kind, p.load, p.contender) == (kind, load, OURS))
    assert isinstance(seen, Seen)
    if not seen.answered:
        raise OwlError(f"of {len(seen.outcomes)} requests ({kind}, {load}) none was answered: {seen.why}")
    return seen.rate


def _rounded(offered: float) -> Load:
    """To two digits, which are a name that can be read."""
    return Load(float(f"{offered:.2g}"))


def _rows(point: Point, title: str, model: Owl, device: torch.device, size: Size) -> list[Row]:
    seen, where = point.seen, ("serve", f"{title}, {point.load}", point.contender)
    if isinstance(seen, str):
        return [absent(*where, "throughput", "req/s", seen)]
    generator = (
        f"load generator: {seen.processor / seen.span:.0%} of a core, late by {1e3 * seen.late:.0f} ms"
    )
    most = limit(model, point.kind, size, device)
    rows = [
        row(*where, "throughput", "req/s", [seen.rate], note=generator),
        row(*where, "output", "tok/s", [seen.rate * seen.tokens], most),
    ]
    for name, seconds in {
        "first token": seen.first,
        "between tokens": seen.between,
        "each token": seen.each,
    }.items():
        for percent in PERCENTILES:
            metric = f"{name} p{percent}"
            if seconds:
                rows.append(row(*where, metric, "ms", [1e3 * percentile(seconds, percent)]))
            else:
                rows.append(absent(*where, metric, "ms", "nothing was answered"))
    for result, count in sorted(seen.counts.items()):
        note = "" if result == ANSWERED else seen.why
        rows.append(row(*where, result, COUNT, [count], note=note))
    return rows
