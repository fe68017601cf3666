"""Every picture from outside comes in here: data URIs and, where the operator said so, hosts and a folder."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from owl_fast.errors import ImageError, ParameterError
from owl_fast.fetch import Fetcher
from owl_fast.images import ImageProcessor
from owl_fast.machine import cpu_count
from owl_fast.picture_files import MAX_BYTES
from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits
from owl_fast.serving.picture_workers import PictureWorkers

MAX_NAME = 4096  # characters, as the system has it
NO_FILE = f"no such picture in the server's folder; wanted a file of at most {MAX_BYTES >> 20} MiB"


class Media:
    """Reads pictures. It has processes from the start until close()."""

    def __init__(
        self,
        processor: ImageProcessor,
        limits: Limits,
        hosts: Collection[str] = (),
        image_dir: str | Path | None = None,
        workers: int | None = None,
    ) -> None:
        """processor: the engine's. hosts: from which https URLs are fetched (fetch.py). image_dir: the folder
        whose files may be named, by "file:///PATH" or a name inside it. workers: processes that decode, by
        default 2, or 1 on a single core. ParameterError, OwlError: what is wrong with these."""
        if image_dir is not None and not Path(image_dir).is_dir():
            raise ParameterError(f"the folder of pictures {str(image_dir)!r:.200} is no folder")
        self._size = processor.size
        self._fetcher = Fetcher(hosts)
        self._folder = None if image_dir is None else os.path.realpath(image_dir)
        self._places = threading.Semaphore(limits.fetches)
        self._workers = PictureWorkers(processor, limits, workers or min(2, cpu_count()))

    async def read(self, url: str, client: str = "") -> Image.Image:
        """The RGB square the engine's processor makes of the picture, which it takes as it is.

        client: whose it is; clients take turns. ApiError: 400 for what is no picture, 429 when too many wait.
        Cancelled, it leaves nothing behind.
        """
        try:
            picture = url if url.startswith("data:") else await self._from_outside(url)
            pixels = await asyncio.wrap_future(self._workers.submit(picture, client))
        except ImageError as error:
            raise ApiError(400, str(error), code="invalid_image") from None
        return Image.frombytes("RGB", (self._size, self._size), pixels)

    def close(self) -> None:
        """End the processes; pictures that are being read fail."""
        self._workers.close()

    async def _from_outside(self, url: str) -> bytes:
        """The bytes of a file or behind a URL."""
        read = self._reader(url)
        if not self._places.acquire(blocking=False):
            raise ApiError(429, "too many pictures are being fetched; try again", retry_after=2)
        fetched = _in_thread(partial(read, url))
        fetched.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(fetched)

    def _reader(self, url: str) -> Callable[[str], bytes]:
        if url[:6].lower().startswith(("http:", "https:")):
            if self._fetcher.hosts:
                return self._fetcher
        elif self._folder is not None:
            return partial(read_inside, self._folder)
        ways = ["data:image/...;base64,..."]
        ways += ["an https URL of an allowed host"] * bool(self._fetcher.hosts)
        ways += ["the name of a file in the server's folder"] * (self._folder is not None)
        raise ImageError(f"the picture's URL is of no kind that is read here; wanted {' or '.join(ways)}")


def read_inside(folder: str, name: str) -> bytes:
    """A regular file inside a folder (its real path). ImageError, always the same, for anything else."""
    try:
        if len(name) > MAX_NAME:  # resolving takes time with the square of the parts
            raise OSError("too long")
        if name.startswith("file:///"):
            name = unquote(name.removeprefix("file://"), errors="strict")
        path = os.path.realpath(os.path.join(folder, name))
        if os.path.commonpath([folder, path]) != folder:
            raise OSError("outside")
        # It may have become a link or a pipe since: neither is followed or waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        raise ImageError(NO_FILE) from None


def _in_thread(read: Callable[[], bytes]) -> Future[bytes]:
    """What it returns, from a thread that ends with it and that the end of the server does not wait for."""
    done: Future[bytes] = Future()

    def run() -> None:
        try:
            result = read()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    done.set_running_or_notify_cancel()  # from here on, who waits may leave, but the thread goes on
    try:
        threading.Thread(target=run, name="owl_fast-media", daemon=True).start()
    except RuntimeError as error:  # too many threads
        done.set_exception(error)
    return done
