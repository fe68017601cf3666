"""Processes that decode: the processor's pictures to the bit; what dies or costs too much harms itself."""

from __future__ import annotations

import base64
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.memory import resident_bytes
from owl_fast.errors import ImageError, OwlError
from owl_fast.images import ImageProcessor
from owl_fast.picture_parts import MAX_SCANS
from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits
from owl_fast.serving.picture_workers import TOO_LONG, PictureWorkers
from tests.pictures.encoding import SIDE, good, saved
from tests.pictures.legal import BOMBS, oddities
from tests.pictures.malformed import KINDS, malformed
from tests.serving.waiting import until

ROOT = Path(__file__).parents[2]
PROCESSOR = ImageProcessor(SIDE)
PLAIN = good("PNG")[0]
MEGABYTE = 1 << 20


@contextmanager
def working(count: int = 1, processor: ImageProcessor = PROCESSOR, **limits: Any) -> Iterator[PictureWorkers]:
    workers = PictureWorkers(processor, Limits(**limits), count)
    try:
        yield workers
    finally:
        workers.close()


@pytest.fixture(scope="module")
def workers() -> Iterator[PictureWorkers]:
    with working() as workers:
        yield workers


def processes(workers: PictureWorkers) -> list[int]:
    return [process._process.pid for process in workers._processes]


def image(pixels: bytes, side: int = SIDE) -> Image.Image:
    return Image.frombytes("RGB", (side, side), pixels)


@functools.cache
def bomb() -> bytes:
    """The slowest picture within the limits that is known: 4000 x 4000 in CMYK and 64 scans, of the kind that
    passes over all blocks."""
    ink = Image.effect_noise((500, 500), 90).resize((4000, 4000))
    inks = [ink.rotate(90 * i) for i in range(4)]
    data = saved(Image.merge("CMYK", inks), "JPEG", progressive=True, quality=1)
    scans = data[:-2].split(b"\xff\xda")[1:]
    return data[:-2] + (b"\xff\xda" + scans[-5]) * (MAX_SCANS - len(scans)) + data[-2:]


# --- the same picture ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "processor",
    [
        ImageProcessor(SIDE),
        ImageProcessor(SIDE, rgb_first=True),
        ImageProcessor(SIDE, crop=True),
        ImageProcessor(33, rgb_first=True, crop=True),
    ],
    ids=["squeezed", "RGB first", "cropped", "RGB first and cropped"],
)
def test_odd_pictures_are_the_processors_to_the_bit(processor: ImageProcessor) -> None:
    files = oddities()
    assert len(files) >= 40
    with working(2, processor, pictures_waiting=100) as workers:
        squares = {name: workers.submit(data, name) for name, data in files.items()}
        for name, data in files.items():
            prepared = image(squares[name].result(), processor.size)
            assert torch.equal(processor(prepared), processor(data)), name


def test_a_data_uri_is_its_content(workers: PictureWorkers) -> None:
    uri = "data:image/png;base64," + base64.b64encode(PLAIN).decode()
    assert workers.submit(uri).result() == workers.submit(PLAIN).result()
    for broken in (uri[:-5] + "@", uri + "=AAA", uri.replace(";base64", ""), "data:", uri + "\ud800", "x"):
        with pytest.raises(ImageError, match="data URI"):
            workers.submit(broken).result()


def test_bytes_that_spell_a_data_uri_are_no_picture(workers: PictureWorkers) -> None:
    with pytest.raises(ImageError, match="no readable"):
        workers.submit(b"data:image/png;base64," + base64.b64encode(PLAIN)).result()


# --- what is wrong, and too much ---


@pytest.mark.filterwarnings("ignore")
def test_five_thousand_malformed_pictures() -> None:
    """Each is a picture or an ImageError, the same as in this process, and no process dies of it."""
    assert len(KINDS) >= 50
    seeds = range(5000 // len(KINDS) + 1)
    cases = [f"{kind}|{seed}" for seed in seeds for kind in KINDS]
    with working(2) as workers:
        before, memory = processes(workers), 0
        for start in range(0, len(cases), 50):
            some = cases[start : start + 50]
            for case, square in [(case, workers.submit(malformed(case), case)) for case in some]:
                try:
                    wanted: Any = PROCESSOR(malformed(case))
                except ImageError as error:
                    wanted = str(error).partition(": ")[2] or str(error)
                try:
                    found: Any = PROCESSOR(image(square.result()))
                except ImageError as error:
                    found = str(error).partition(": ")[2] or str(error)
                same = found == wanted if isinstance(found, str) else torch.equal(found, wanted)
                assert same, (case, found, wanted)
            memory = memory or resident_bytes()
        assert resident_bytes() - memory < 100 * MEGABYTE
        assert processes(workers) == before


def test_bombs_are_refused_without_being_decoded() -> None:
    """In 64 MiB beside its own, where none of them would find room, and in this process none."""
    assert len(BOMBS) >= 20
    with working(picture_memory=64 * MEGABYTE) as workers:
        before = processes(workers)
        for name, make in BOMBS.items():
            with pytest.raises(ImageError, match=r"at most|more than|no readable|broken"):
                workers.submit(make()).result()
            assert processes(workers) == before, name
        assert len(workers.submit(PLAIN).result()) == 3 * SIDE**2


def test_a_picture_beyond_the_memory_fails_alone() -> None:
    large = saved(Image.new("RGB", (4000, 4000)), "PNG")
    with working(picture_memory=24 * MEGABYTE) as workers:
        with pytest.raises(ImageError):
            workers.submit(large).result()
        assert len(workers.submit(PLAIN).result()) == 3 * SIDE**2
    with working() as workers:
        assert len(workers.submit(large).result()) == 3 * SIDE**2


def test_the_memory_is_counted_from_where_a_process_begins(workers: PictureWorkers) -> None:
    (process,) = processes(workers)
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    limits = Path(f"/proc/{process}/limits").read_text()
    (space,) = (int(line.split()[3]) for line in limits.splitlines() if line.startswith("Max address space"))
    assert abs(space - (1 << 30) - pages * os.sysconf("SC_PAGE_SIZE")) < 256 * MEGABYTE
    assert "Max core file size        0                    0" in limits


def cpu_of_the_dead() -> float:
    """Seconds of the processes that have been waited for."""
    return os.times().children_user + os.times().children_system


def test_the_slowest_picture_stays_within_the_limit() -> None:
    used = cpu_of_the_dead()
    with working() as workers:
        square = workers.submit(bomb())
        assert square.exception() is None or str(square.exception()) == TOO_LONG
    assert cpu_of_the_dead() - used < 2.5


def test_a_picture_beyond_the_time_ends_its_process_and_only_itself() -> None:
    used = cpu_of_the_dead()
    with working(picture_cpu=0.3) as workers:
        before = processes(workers)
        slow, plain = workers.submit(bomb()), workers.submit(PLAIN)
        with pytest.raises(ImageError, match=TOO_LONG):
            slow.result()
        assert cpu_of_the_dead() - used < 1.0
        assert plain.result() == workers.submit(PLAIN).result()
        assert processes(workers) != before


# --- what dies or hangs ---


def busy(workers: PictureWorkers) -> Future[bytes]:
    """A picture that its process, stopped, has begun with."""
    for process in processes(workers):
        os.kill(process, signal.SIGSTOP)
    square = workers.submit(PLAIN)
    until(square.running)
    return square


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_fails_its_picture_and_no_other(death: signal.Signals) -> None:
    with working() as workers:
        wanted = workers.submit(PLAIN).result()
        square, behind = busy(workers), workers.submit(PLAIN)
        (process,) = processes(workers)
        os.kill(process, death)
        os.kill(process, signal.SIGCONT)
        with pytest.raises(ImageError, match="cannot be decoded"):
            square.result()
        assert behind.result() == wanted


def test_a_process_that_dies_idle_fails_no_picture() -> None:
    with working() as workers:
        for _ in range(3):
            (process,) = processes(workers)
            os.kill(process, signal.SIGKILL)
            until(lambda: not workers._processes[0].is_alive())
            assert len(workers.submit(PLAIN).result()) == 3 * SIDE**2


def test_a_process_that_stands_still_is_given_up() -> None:
    with working(picture_seconds=1.5) as workers:
        with pytest.raises(ImageError, match=TOO_LONG):
            busy(workers).result()
        assert len(workers.submit(PLAIN).result()) == 3 * SIDE**2


def test_a_process_that_says_anything_else_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with working() as workers:
        before = processes(workers)
        monkeypatch.setattr(workers._processes[0], "_bytes", 5)
        with pytest.raises(ImageError, match="cannot be decoded"):
            workers.submit(PLAIN).result()
        assert len(workers.submit(PLAIN).result()) == 3 * SIDE**2
        assert processes(workers) != before


def test_without_a_new_process_the_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object, **options: object) -> None:
        raise OSError("Cannot allocate memory")

    with working() as workers:
        os.kill(processes(workers)[0], signal.SIGKILL)
        until(lambda: not workers._processes[0].is_alive())
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", no_memory)
            with pytest.raises(ApiError) as caught:
                workers.submit(PLAIN).result()
        assert (caught.value.status, "memory" in caught.value.message) == (503, False)
        assert len(workers.submit(PLAIN).result()) == 3 * SIDE**2


def test_processes_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OwlError, match="does not start"):
        PictureWorkers(PROCESSOR, Limits(), 2)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)


# --- turns ---


def test_a_picture_goes_past_the_slow_ones_of_somebody_else() -> None:
    with working(2, picture_cpu=5.0) as workers:
        slow = [workers.submit(bomb(), "a") for _ in range(20)]
        until(slow[0].running)
        assert not slow[1].running()
        assert len(workers.submit(PLAIN, "b").result()) == 3 * SIDE**2
        assert not slow[1].done()


def test_clients_take_turns() -> None:
    with working() as workers:
        first, order = busy(workers), []
        for i, client in enumerate("aaabbc"):
            square = workers.submit(PLAIN, client)
            square.add_done_callback(lambda _, name=f"{client}{i}": order.append(name))
        os.kill(processes(workers)[0], signal.SIGCONT)
        first.result()
        until(lambda: len(order) == 6)
        assert order == ["a0", "b3", "c5", "a1", "b4", "a2"]


def test_what_is_cancelled_while_it_waits_leaves_nothing() -> None:
    with working(pictures_waiting=8) as workers:
        first = busy(workers)
        for _ in range(50):
            some = [workers.submit(PLAIN, str(i % 3)) for i in range(8)]
            with pytest.raises(ApiError) as caught:
                workers.submit(PLAIN)
            assert (caught.value.status, caught.value.retry_after) == (429, 2)
            assert all(square.cancel() for square in some)
            assert workers.waiting == 0
        last = workers.submit(PLAIN)
        os.kill(processes(workers)[0], signal.SIGCONT)
        assert first.result() == last.result()


# --- the end ---


def test_close_ends_everything() -> None:
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    workers = PictureWorkers(PROCESSOR, Limits(), 2)
    pids = processes(workers)
    under_way = [busy(workers), workers.submit(PLAIN), workers.submit(PLAIN)]
    workers.close()
    workers.close()
    for square in under_way:
        with pytest.raises(ApiError) as caught:
            square.result()
        assert caught.value.status == 503
    with pytest.raises(ApiError):
        workers.submit(PLAIN)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)


SERVER = """
import json, sys, time
from owl_fast.images import ImageProcessor
from owl_fast.serving.limits import Limits
from owl_fast.serving.picture_workers import PictureWorkers

workers = PictureWorkers(ImageProcessor(24), Limits(), 2)
workers.submit(open(sys.argv[1], "rb").read())
print(json.dumps([process._process.pid for process in workers._processes]), flush=True)
time.sleep(1000)
"""


def test_no_process_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(bomb())
    command = [sys.executable, "-c", SERVER, str(tmp_path / "bomb")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout
        pids = json.loads(server.stdout.readline())
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        server.kill()
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody waits for is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_is_small_and_knows_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWL_API_KEY", "a key of sixteen and more")
    with working() as workers:
        (pid,) = processes(workers)
        assert b"a key of" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        names = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
        assert all(name == "/dev/null" or name.startswith("socket:") for name in names), names
