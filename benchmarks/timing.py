"""How time is taken, and what the machine gives at most, measured in the same run."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from benchmarks import bandwidth
from benchmarks.harness import Row, absent, quantiles, row

Run = Callable[[], Any]
Timer = Callable[[], float]  # seconds of one run
T = TypeVar("T")
# What prepares a timer, which may have something to note, or the reason why it takes no part.
Contender = Callable[[], tuple[Timer, str]] | str
ROUNDS = 5, 200  # of a comparison: as many as its seconds allow, within these
WARM = 3  # runs before the clock


def alternate(timers: Mapping[str, Timer], seconds: float, pause: float = 0.0) -> dict[str, list[float]]:
    """Each timer's values, taken in turns, so that a change of clocks meets all of them; `seconds` each.

    pause: seconds before each value.
    """
    least, most = ROUNDS
    values: dict[str, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds * len(timers)
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        for name, timer in timers.items():
            time.sleep(pause)
            values[name].append(timer())
    return values


def pause(device: torch.device) -> float:
    """Seconds between contenders. OpenMP's threads, torch's and llama.cpp's, go on spinning after their work,
    5 ms on two cores: whoever comes next would have to share the cores with them."""
    return 0.02 if device.type == "cpu" else 0.0


def wall(run: Run, device: torch.device) -> float:
    """Seconds until the result of run() is there."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def wall_timer(run: Run, device: torch.device) -> tuple[Timer, str]:
    """What a caller waits, launching included. The run has been warmed up."""
    for _ in range(WARM):
        run()
    return functools.partial(wall, run, device), ""


def release(device: torch.device) -> None:
    """Give back the memory of what ran before: engines refer to themselves, two large ones do not fit."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernel_timer(run: Run, device: torch.device) -> tuple[Timer, str]:
    """A timer of the device's work alone, and what has to be said of it.

    On CUDA: replays of a captured graph between two events, behind a sweep that leaves nothing of the inputs
    in the L2 cache. What cannot be captured is launched as it is. On a CPU: the clock on the wall, once a run
    that does not count has woken the threads.
    """
    if device.type != "cuda":
        run()
        return functools.partial(_second, run, device), ""
    replay, note = captured(run)
    sweep = _sweep(device)

    def seconds() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        sweep.sum()  # reads: lines that were written would have to go to memory while the clock runs
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds, note


def _second(run: Run, device: torch.device) -> float:
    run()
    return wall(run, device)


def captured(run: Run) -> tuple[Run, str]:
    """The same as replays of a CUDA graph, or run itself and why."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()

    def capture() -> Run:
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    replay = attempt(capture)
    torch.cuda.synchronize()
    return (run, f"not captured: {replay}") if isinstance(replay, str) else (replay, "")


@functools.cache
def _sweep(device: torch.device) -> torch.Tensor:
    size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.zeros(size, dtype=torch.int8, device=device).view(torch.float32)


class Effort(Protocol):
    """Bytes that have to be read or written at least, and multiplications and additions."""

    @property
    def nbytes(self) -> float: ...

    @property
    def flops(self) -> float: ...

    @property
    def int8(self) -> bool:
        """Whether a CPU may multiply int8 numbers."""
        ...


@dataclass(frozen=True)
class Machine:
    """What was measured of the machine in this run. copy: bytes/s, read and written; matmul: operations/s of
    the best floating-point dtype; nothing: seconds of an empty measurement. Of a CPU also read: bytes/s, in
    several streams; int8: operations/s."""

    copy: Sequence[float]
    matmul: Sequence[float]
    nothing: Sequence[float]
    read: Sequence[float] = ()
    int8: Sequence[float] = ()
    read_note: str = ""

    def floor(self, work: Effort) -> float:
        """Seconds that it takes at least."""
        matmul = self.int8 if work.int8 and self.int8 else self.matmul
        return max(self._moving(work), work.flops / statistics.median(matmul))

    def _moving(self, work: Effort) -> float:
        return work.nbytes / max(statistics.median(rates) for rates in (self.copy, self.read) if rates)

    def rows(self) -> list[Row]:
        where = "machine", "", "torch"
        rows = [
            row(*where, "copy", "GB/s", [value / 1e9 for value in self.copy]),
            row(*where, "matmul", "TFLOP/s", [value / 1e12 for value in self.matmul]),
            row(*where, "nothing", "us", [value * 1e6 for value in self.nothing]),
        ]
        if self.read:
            read = [value / 1e9 for value in self.read]
            rows.append(row("machine", "", "C++", "read", "GB/s", read, note=self.read_note))
        if self.int8:
            rows.append(row(*where, "int8 matmul", "TOP/s", [value / 1e12 for value in self.int8]))
        return rows

    def timed(
        self, where: tuple[str, str, str, str], seconds: Sequence[float], work: Effort, note: str
    ) -> Row:
        """Microseconds, beside the floor of the work. where: case, shape, contender, metric."""
        p20, median, p80 = quantiles(seconds)
        floor = self.floor(work)
        moving = floor == self._moving(work)
        done, unit = (work.nbytes / 1e9, "GB/s") if moving else (work.flops / 1e12, "TFLOP/s")
        times = p20 * 1e6, median * 1e6, p80 * 1e6
        return Row(*where, "us", *times, floor / median, done / median, unit, note)


def attempt(peer: Callable[[], T]) -> T | str:
    """What a peer gives, or why it gives nothing: it may not be installed, or not take what it is given."""
    try:
        return peer()
    except Exception as error:
        first, *_ = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {first:.160}"


def race(
    where: tuple[str, str, str],
    device: torch.device,
    work: Effort,
    contenders: Mapping[str, Contender],
    seconds: float,
) -> list[Row]:
    """One row per contender, measured in turns. where: case, shape and metric.

    The first is ours and must run; a peer that fails is absent for that reason.
    """
    case, shape, metric = where
    ours, *_ = contenders
    timers, rows = {}, {}
    for name, prepare in contenders.items():
        if isinstance(prepare, str):
            ready: tuple[Timer, str] | str = prepare
        else:
            ready = prepare() if name == ours else attempt(prepare)
        if isinstance(ready, str):
            rows[name] = absent(case, shape, name, metric, "us", ready)
        else:
            timers[name] = ready
    taken = alternate({name: timer for name, (timer, _) in timers.items()}, seconds, pause(device))
    for name, values in taken.items():
        rows[name] = machine(device).timed((case, shape, name, metric), values, work, timers[name][1])
    return [rows[name] for name in contenders]


@functools.cache
def machine(device: torch.device) -> Machine:
    """Measured once a run, on random numbers: zeros are multiplied faster."""
    gpu = device.type == "cuda"
    source = torch.randn(1 << (28 if gpu else 25), device=device)
    target = torch.empty_like(source)
    copy, _ = kernel_timer(lambda: target.copy_(source), device)
    nothing, _ = kernel_timer(lambda: target[:1].zero_() if gpu else None, device)
    side = 8192 if gpu else 1024
    timers = {"copy": copy, "nothing": nothing}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        timers[str(dtype)], _ = kernel_timer(functools.partial(torch.mm, a, b), device)
    read_bytes, read_note = 0, ""
    if not gpu:
        a8, b8 = (torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2))
        timers["int8"], _ = kernel_timer(functools.partial(torch._int_mm, a8, b8), device)
        timers["read"], read_bytes, read_note = bandwidth.reader()
    taken = alternate(timers, 0.3, pause(device))
    products = min(taken["torch.bfloat16"], taken["torch.float32"], key=statistics.median)
    return Machine(
        copy=[2 * source.nbytes / seconds for seconds in taken["copy"]],
        matmul=[2 * side**3 / seconds for seconds in products],
        nothing=taken["nothing"],
        read=[read_bytes / seconds for seconds in taken.get("read", ())],
        int8=[2 * side**3 / seconds for seconds in taken.get("int8", ())],
        read_note=read_note,
    )
