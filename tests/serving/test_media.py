"""The door for pictures: what comes in is the processor's picture, what does not is an error without echo."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from PIL import Image

from benchmarks.memory import resident_bytes
from owl_fast import Engine, fetch
from owl_fast.engine.pictures import Picture
from owl_fast.errors import ImageError, ParameterError
from owl_fast.images import ImageProcessor
from owl_fast.picture_files import MAX_BYTES
from owl_fast.serving import media
from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits
from owl_fast.serving.media import NO_FILE, Media, read_inside
from tests.golden_data import image_files
from tests.pictures.encoding import SIDE, good, saved
from tests.pictures.legal import BOMBS
from tests.test_fetch import HOST, URL, Canary, Web, endless, reply, silent, spellings

T = TypeVar("T")
PROCESSOR = ImageProcessor(SIDE)
PLAIN = good("PNG")[0]


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@contextmanager
def opened(*arguments: Any, limits: Limits | None = None, **options: Any) -> Iterator[Media]:
    media = Media(PROCESSOR, limits or Limits(), *arguments, **{"workers": 1} | options)
    try:
        yield media
    finally:
        media.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Media]:
    with opened() as media:
        yield media


def read(media: Media, url: str) -> torch.Tensor:
    return PROCESSOR(asyncio.run(media.read(url)))


def refusal(media: Media, url: str) -> str:
    """The text of the refusal; it says nothing of what came."""
    with pytest.raises(ApiError) as caught:
        asyncio.run(media.read(url))
    error = caught.value
    assert (error.status, error.code) == (400, "invalid_image")
    assert len(error.content) < Limits().error
    # No word of what came, but those that say what was wanted.
    told = {part.strip() for part in url.split("/") if len(part) > 4 and part in error.message}
    assert told <= {"data:", "data:image", "https", "https:"}, (url, error.message)
    assert "0x" not in error.message
    assert error.__cause__ is None
    assert error.__suppress_context__
    return error.message


# --- data URIs ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_are_the_processors(plain: Media, form: str) -> None:
    for data in good(form):
        assert torch.equal(read(plain, data_uri(data, f"image/{form.lower()}")), PROCESSOR(data))


@contextmanager
def door_of(engine: Engine) -> Iterator[Callable[[bytes], object]]:
    door = Media(engine.processor, Limits(), workers=1)
    try:
        yield lambda data: asyncio.run(door.read(data_uri(data)))
    finally:
        door.close()


def about(picture: object) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is there?"}]
    return [{"role": "user", "content": parts}]


def test_an_engine_answers_as_if_it_had_read_the_picture_itself() -> None:
    engine = Engine.from_pretrained(device="cpu")
    with door_of(engine) as prepared:
        for path in image_files():
            picture = prepared(path.read_bytes())
            assert torch.equal(engine.processor(picture), engine.processor(path))
            told, own = (engine.generate(about(p), max_tokens=8).text for p in (picture, path))
            assert told == own


# --- twins: what is kept of one picture is never used for another ---


def test_twins_are_told_apart() -> None:
    """Ten thousand pairs that differ in a level, in the order of their pixels or channels, or in shape."""
    generator = torch.Generator().manual_seed(0)
    digests = set()
    for _ in range(2500):
        one = torch.randint(0, 255, (3, 4, 6), generator=generator).float() / 255
        changed = one.clone()
        changed.view(-1)[int(torch.randint(0, 72, (), generator=generator))] += 1 / 255
        others = (changed, one.flip(0), one.reshape(3, 6, 4), one[None])
        own = {Picture(twin).digest for twin in (one, *others)}
        assert len(own) == 5
        assert Picture(one.clone()).digest in own
        digests |= own
    assert len(digests) == 12_500


def test_a_seen_picture_changes_nothing_about_its_twin() -> None:
    keeping = Engine.from_pretrained(device="cpu")
    forgetting = Engine.from_pretrained(device="cpu", picture_cache_mb=0, prefix_cache=False)
    pixels = random.Random(0).randbytes(3 * 64 * 48)
    twins = [saved(Image.frombytes("RGB", size, pixels), "PNG") for size in ((64, 48), (48, 64), (96, 32))]
    twins += [saved(Image.frombytes("L", (144, 64), pixels), "PNG"), twins[0]]
    with door_of(keeping) as prepared:
        pictures = [prepared(data) for data in twins]
        scores = [
            [engine.score(about(picture), None, "a red square") for picture in pictures]
            for engine in (keeping, forgetting)
        ]
    assert scores[0] == scores[1]
    assert len(set(map(tuple, scores[0]))) == 4


ENCODED = base64.b64encode(PLAIN).decode()
NOT_DATA = (
    *("", " ", "a", "data:", "data:,", "data:image/png", "data:image/png,abc", "data:image/png;base64"),
    *(f"data:image/png;base64{ENCODED}", f"data:image/png;utf8,{ENCODED}", f"DATA:;base64,{ENCODED}"),
    *(f" data:image/png;base64,{ENCODED}", f"data:image/png;base64, {ENCODED}", f"data:;base64,{ENCODED}\n"),
    *(f"data:;base64,{ENCODED[:40]}\n{ENCODED[40:]}", f"data:;base64,{ENCODED[:-2]}"),
    *(f"data:;base64,={ENCODED}", f"data:;base64,{ENCODED}====", "data:;base64,@@@@", "data:;base64,%89PNG"),
    *(f"data:;base64,{ENCODED[:9]}\0{ENCODED[9:]}", f"data:;base64,{ENCODED[:9]}é{ENCODED[9:]}"),
    *(f"data:;base64,{ENCODED}\ud800", "data:image/png;base64,", f"data:{'a' * 300};base64,{ENCODED}"),
    *(ENCODED, PLAIN.decode("latin-1"), "blob:https://localhost/1234", "about:blank", "javascript:alert(1)"),
    data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    data_uri(b"%PDF-1.7\n", "application/pdf"),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(NOT_DATA)))
def test_what_is_no_data_uri_of_a_picture_is_refused(plain: Media, number: int) -> None:
    assert refusal(plain, NOT_DATA[number])


def test_bombs_are_refused_and_cost_nothing_here(plain: Media) -> None:
    urls = [data_uri(make()) for make in BOMBS.values()]
    urls.append("data:image/png;base64," + "A" * (MAX_BYTES * 2))
    assert len(urls) >= 20
    for url in urls:
        refusal(plain, url)
    before = resident_bytes()
    for _ in range(2):
        for url in urls:
            with pytest.raises(ApiError):
                asyncio.run(plain.read(url))
    # A body's worth: what came is let go of at once, not when the garbage is collected.
    assert resident_bytes() - before < 20 << 20
    assert torch.equal(read(plain, data_uri(PLAIN)), PROCESSOR(PLAIN))


# --- other hosts ---


@pytest.fixture
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    web = Web(monkeypatch)
    yield web
    web.close()


@pytest.mark.parametrize("hosts", [(), ("*",), (HOST,)], ids=str)
@pytest.mark.parametrize("folder", [False, True], ids=["", "folder"])
def test_no_spelling_reaches_the_loopback(
    canary: Canary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hosts: tuple[str, ...], folder: bool
) -> None:
    monkeypatch.setattr(fetch, "_connect", lambda a, t: socket.create_connection(("127.0.0.1", canary.port)))
    monkeypatch.setattr(fetch, "_addresses", lambda host: ["127.0.0.1"])
    urls = spellings(canary.port)
    assert len(urls) >= 200
    with opened(hosts, tmp_path if folder else None) as media:
        texts = {refusal(media, url) for url in urls}
    assert canary.visits == 0
    # One text for all that looks like a URL, one for the rest: neither tells one place from another.
    assert len(texts) == 1 + (bool(hosts) or folder)


def test_without_hosts_no_name_is_even_resolved(plain: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_addresses", lambda host: pytest.fail("resolved"))
    assert (
        refusal(plain, URL) == refusal(plain, f"http://{HOST}/a.png") == refusal(plain, "file:///etc/passwd")
    )


def test_a_picture_of_an_allowed_host_is_fetched(web: Web) -> None:
    web.behave = reply(PLAIN)
    with opened([HOST]) as media:
        assert torch.equal(read(media, URL), PROCESSOR(PLAIN))
        assert web.dialled == ["93.184.215.14"]
        web.resolved.clear()
        web.behave = reply(b"data:image/png;base64," + ENCODED.encode())
        assert "no readable" in refusal(media, URL)


def test_nothing_of_a_failed_fetch_is_told_apart(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 0.5)
    texts = set()
    with opened([HOST, "other.example.org"]) as media:
        for behave in (reply(status="404 Not Found"), silent, endless, lambda channel, request: None):
            web.behave = behave
            web.resolved.clear()
            texts.add(refusal(media, URL))
        for url in (URL, "https://other.example.org/", "https://third.example.org/", f"http://{HOST}/"):
            texts.add(refusal(media, url))
    assert texts == {fetch.FAILED}


def test_slow_hosts_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch, plain: Media) -> None:
    release = threading.Event()

    def slow(self: object, url: str) -> bytes:
        assert release.wait(30)
        return PLAIN

    async def main(door: Media) -> list[object]:
        slow = [asyncio.create_task(door.read(URL)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await door.read(URL)
        assert (caught.value.status, caught.value.retry_after) == (429, 2)
        await door.read(data_uri(PLAIN))
        slow[0].cancel()
        release.set()
        squares: list[object] = await asyncio.gather(*slow, return_exceptions=True)
        await door.read(URL)  # the places are free again
        return squares

    monkeypatch.setattr(fetch.Fetcher, "__call__", slow)
    with opened([HOST], limits=Limits(fetches=3)) as door:
        first, *others = asyncio.run(main(door))
    assert isinstance(first, asyncio.CancelledError)
    assert all(torch.equal(PROCESSOR(square), PROCESSOR(PLAIN)) for square in others)


# --- files ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.png").write_bytes(PLAIN)
    (folder / "inner" / "b c.png").write_bytes(PLAIN)
    (folder / "link.png").symlink_to("a.png")
    (tmp_path / "outside.png").write_bytes(PLAIN)
    (tmp_path / "pictures-too").mkdir()
    (tmp_path / "pictures-too" / "a.png").write_bytes(PLAIN)
    (folder / "out.png").symlink_to("../outside.png")
    (folder / "out").symlink_to("..")
    (folder / "root").symlink_to("/")
    (folder / "loop").symlink_to("loop")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
    return folder


def test_files_of_the_folder_are_read(folder: Path) -> None:
    names = ("a.png", "inner/b c.png", "inner/b%20c.png", "inner/../a.png", "./a.png", "link.png", ".//a.png")
    with opened(image_dir=folder) as media:
        for url in [f"file://{folder}/{name}" for name in names] + [f"{folder}/a.png", *names]:
            if url == "inner/b%20c.png":  # a name, not a URL
                assert refusal(media, url) == NO_FILE
            else:
                assert torch.equal(read(media, url), PROCESSOR(PLAIN)), url


def traversals(folder: Path) -> list[str]:
    # fmt: off
    outside = folder.parent / "outside.png"
    inside = (
        *("../outside.png", "../../outside.png", "inner/../../outside.png", "./../outside.png"),
        *("..//outside.png", "../pictures/../outside.png", "a.png/../../outside.png"),
        *("out.png", "out/outside.png", "out/../outside.png", "inner/../out.png", "root/etc/passwd"),
        *("zero.png", "loop", "loop/a.png", "pipe.png", "socket.png", "inner", ".", "..", "", "/", "no.png"),
        *("a.png\0.txt", "\0", "../outside.png\0", "a\ud800.png", "\x7f", "a" * 5000, "a/" * 3000),
        *("..\\outside.png", "%2e%2e/outside.png", "..%2foutside.png", "%2e%2e%2foutside.png"),
        *("．．/outside.png", "..\u2215outside.png", "~/outside.png", "~root", "$HOME", "*.png", "a.pn?"),
        *("..%c0%afoutside.png", "../pictures-too/a.png"),
    )
    absolute = (
        *(str(outside), f"/{outside}", f"{folder}/../outside.png", f"{folder}-too/a.png", "/etc/passwd"),
        *("/proc/self/environ", "/proc/self/mem", "/proc/self/fd/0", "/dev/zero", "/dev/stdin"),
        *(f"/proc/self/root{outside}", f"/proc/self/cwd/../{outside}", "/sys/kernel/notes", "/etc/shadow"),
    )
    files = (
        *(f"file://{outside}", f"file://{folder}/../outside.png", f"file://{folder}/%2e%2e/outside.png"),
        *(f"file://{folder}/..%2foutside.png", f"file://localhost{outside}", f"file:{outside}", "file:///"),
        *(f"file://{folder}/%ff", f"file://{folder}/a.png%00", f"FILE://{folder}/a.png", "file:", "file://"),
        *(f"file://127.0.0.1{outside}", f"file:////{outside}", f"file://{folder}/a.png?x"),
        *(f"file://{folder}/a.png#", f"file://{folder}-too/a.png"),
    )
    # fmt: on
    return [*inside, *absolute, *files]


def test_no_traversal_reads_anything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = traversals(folder)
    assert len(names) == len(set(names)) >= 60
    opened_files: list[str] = []
    real = os.open

    def watched(path: Any, flags: int, *more: Any, **options: Any) -> int:
        opened_files.append(os.fspath(path))
        return real(path, flags, *more, **options)

    handles = len(os.listdir("/proc/self/fd"))
    with opened(image_dir=folder) as door:
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(media.os, "open", watched)
        assert {refusal(door, name) for name in names} == {NO_FILE}
        assert len(os.listdir("/proc/self/fd")) == before
    assert all(Path(path).is_relative_to(os.path.realpath(folder)) for path in opened_files)
    assert len(os.listdir("/proc/self/fd")) == handles


def test_a_name_is_only_resolved_when_it_can_be_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving takes time with the square of its parts."""
    resolved: list[str] = []
    monkeypatch.setattr(os.path, "realpath", resolved.append)
    for name in ("a/" * 2049, "./" * 100_000, "file:///" + "a/" * 2049):
        with pytest.raises(ImageError):
            read_inside(str(folder), name)
    assert not resolved


def test_a_file_that_becomes_a_link_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the opening."""
    monkeypatch.setattr(media.os.path, "realpath", lambda path: os.path.normpath(path))
    with opened(image_dir=folder) as door:
        assert refusal(door, "out.png") == NO_FILE
        assert torch.equal(read(door, "a.png"), PROCESSOR(PLAIN))


def test_without_a_folder_no_file_is_read(plain: Media, folder: Path) -> None:
    for url in (f"file://{folder}/a.png", f"{folder}/a.png", "a.png"):
        assert refusal(plain, url) == refusal(plain, "x")


def test_large_files_are_refused(folder: Path) -> None:
    with (folder / "large.png").open("wb") as file:
        file.truncate(1 << 40)
    with opened(image_dir=folder) as media:
        assert "more than 8 MiB" in refusal(media, "large.png")


@pytest.mark.parametrize("folder", ["no/such/folder", __file__])
def test_folders_that_are_none(folder: str) -> None:
    with pytest.raises(ParameterError, match="no folder"):
        Media(PROCESSOR, Limits(), image_dir=folder)


# --- asyncio ---


def test_who_leaves_takes_the_place_along(plain: Media) -> None:
    async def main() -> None:
        for _ in range(20):
            tasks = [asyncio.create_task(plain.read(data_uri(PLAIN))) for _ in range(40)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended)
            assert plain._workers.waiting == 0
        await plain.read(data_uri(PLAIN))

    threads = threading.active_count()
    asyncio.run(main())
    assert threading.active_count() == threads


def test_who_waits_when_it_closes_is_told() -> None:
    async def main(door: Media) -> list[object]:
        tasks = [asyncio.create_task(door.read(data_uri(PLAIN))) for _ in range(10)]
        await asyncio.sleep(0)
        door.close()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    with opened() as door:
        for end in asyncio.run(main(door)):
            assert not isinstance(end, ApiError) or end.status == 503
            assert isinstance(end, ApiError) or PROCESSOR(end) is not None


def test_the_log_holds_no_content(caplog: pytest.LogCaptureFixture, plain: Media) -> None:
    caplog.set_level(logging.DEBUG)
    for url in NOT_DATA:
        refusal(plain, url)
    assert all(record.name == "asyncio" for record in caplog.records)
