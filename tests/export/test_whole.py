"""What exports write is there whole or not at all, whatever happens; links are not followed."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from owl_fast.checkpoints import weights_sha256, writer
from owl_fast.engine.opening import BUNDLED
from owl_fast.export import gguf, llm, merged
from owl_fast.lora import Base
from tests.export.adapters import adapter_of
from tests.golden_data import Golden

MICRO = Golden("micro").checkpoint


class Export(NamedTuple):
    """A command, and how its output is named."""

    name: str
    main: Callable[[list[str]], int]
    out: str

    def argv(self, model: Path, adapter: Path, out: Path) -> list[str]:
        inputs = [str(model), str(adapter)] if self.name == "merged" else [str(model)]
        return [*inputs, "--out", str(out), "--plain"]


EXPORTS = [
    Export("merged", merged.main, "out"),
    Export("llm", llm.main, "out"),
    Export("gguf", gguf.main, "out.gguf"),
]


@pytest.fixture(params=EXPORTS, ids=lambda export: export.name)
def export(request: pytest.FixtureRequest) -> Export:
    found: Export = request.param
    if found.name == "gguf":
        pytest.importorskip("gguf")
    return found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    return adapter_of(MICRO, folder, Base("micro", weights_sha256(MICRO)))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("target", ["empty", "mine", "file", "nowhere", "out", "out.gguf", "/etc"])
def test_links_are_refused(
    target: str, export: Export, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / export.out).symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    assert export.main(export.argv(MICRO, adapter, tmp_path / export.out)) == 1
    assert "a link; name what it leads to, or something new" in one_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == (tmp_path / "mine/mine").read_text() == "mine"


def test_what_is_there_stays(
    export: Export, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full folder or a file of that name, and what the command itself has written; a file on the way."""
    out = tmp_path / export.out
    out.mkdir()
    (out / "mine").write_text("mine")
    assert export.main(export.argv(MICRO, adapter, out)) == 1
    assert "exists" in one_line(capsys)
    (out / "mine").unlink()
    out.rmdir()
    assert export.main(export.argv(MICRO, adapter, out)) == 0
    written = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    capsys.readouterr()
    for model in (MICRO, out):
        assert export.main(export.argv(model, adapter, out)) == 1
        assert "exists" in one_line(capsys)
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == written
    (tmp_path / "file").write_text("mine")
    assert export.main(export.argv(MICRO, adapter, tmp_path / "file" / export.out)) == 1
    assert "cannot be written" in one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {export.out, "file"}


def test_folders_on_the_way_are_made(export: Export, adapter: Path, tmp_path: Path) -> None:
    assert export.main(export.argv(MICRO, adapter, tmp_path / "a" / "b" / export.out)) == 0
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == [export.out]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files end after 64 KB, where the system refuses more as it does when a disk is full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_leaves_nothing(
    export: Export, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(export.argv(MICRO, adapter, tmp_path / export.out)) == 1
    assert "cannot be written" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [0, -2, -1])
def test_a_disk_that_refuses_at_the_end_leaves_nothing(
    call: int,
    export: Export,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the calls that bring files to the disk this one fails; the last comes when all is named."""
    calls = synced(export, adapter, tmp_path / "first" / export.out, monkeypatch)
    shutil.rmtree(tmp_path / "first")
    fail_at(range(calls)[call], monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert export.main(export.argv(MICRO, adapter, tmp_path / export.out)) == 1
    assert "No space left on device" in one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == ({export.out} if call == -1 else set())


def synced(export: Export, adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the command brings something to the disk."""
    calls = 0
    sync = writer.sync

    def counted(path: Path) -> None:
        nonlocal calls
        calls += 1
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "sync", counted)
        assert export.main(export.argv(MICRO, adapter, out)) == 0
    return calls


def fail_at(call: int, monkeypatch: pytest.MonkeyPatch, error: BaseException | int) -> None:
    """error: raised, or the signal sent."""
    left, sync = [call], writer.sync

    def failing(path: Path) -> None:
        left[0] -= 1
        if left[0] == -1:
            if isinstance(error, int):
                os.kill(os.getpid(), error)
            else:
                raise error
        sync(path)

    monkeypatch.setattr(writer, "sync", failing)


def test_too_little_room_is_noticed_before(
    export: Export,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert export.main(export.argv(MICRO, adapter, tmp_path / "new" / export.out)) == 1
    assert "0.1 MiB are free; make room" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(
    number: int, export: Export, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(0, monkeypatch, number)
    before = signal.getsignal(signal.SIGTERM)
    argv = export.argv(MICRO, adapter, tmp_path / export.out)
    assert export.main(argv) == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_random_moments(number: int, export: Export, tmp_path: Path) -> None:
    """The output is whole or not there, and nothing is beside it."""
    adapter = adapter_of(BUNDLED, tmp_path / "adapter", Base("nano", weights_sha256(BUNDLED)))
    place = tmp_path / "place"

    def begin() -> subprocess.Popen[bytes]:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        argv = export.argv(BUNDLED, adapter, place / export.out)
        command = [sys.executable, "-m", f"owl_fast.export.{export.name}", *argv]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    start = time.monotonic()
    assert begin().wait() == 0
    seconds = time.monotonic() - start
    generator, ended = random.Random(number), 0
    for _ in range(6):
        process = begin()
        time.sleep(generator.uniform(0.3, 1.0) * seconds)
        process.send_signal(number)
        code = process.wait(20)
        # A signal before the command has begun ends Python in its own way.
        assert code in (0, 128 + number, -number, 1 if number == signal.SIGINT else 0)
        names = {path.name for path in place.iterdir()}
        assert names <= {export.out}
        assert code != 0 or names == {export.out}
        ended += code == 128 + number
    assert ended


@pytest.mark.parametrize("name", ["llm", "gguf"])
def test_adapters_are_to_be_merged_first(
    name: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = next(export for export in EXPORTS if export.name == name)
    named = adapter_of(MICRO, tmp_path / "adapter", None)
    assert found.main(found.argv(named, adapter, tmp_path / found.out)) == 1
    assert "an adapter; merge it first" in (said := one_line(capsys))
    assert f"python -m owl_fast.export.merged BASE {named} --out DIR" in said


def test_help_and_settings(
    export: Export, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, said in (
        (["--help"], "examples:"),
        ([*export.argv(MICRO, adapter, tmp_path), "--print-config"], "out = "),
    ):
        with pytest.raises(SystemExit) as caught:
            export.main(argv)
        assert caught.value.code == 0
        assert said in capsys.readouterr().out
