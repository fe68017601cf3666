"""Pictures are decoded in processes of their own: a crash, a bomb or a leak there harms one picture.

Each process has a thread here that hands it one picture at a time. Clients take turns, and one client never
has all processes of several: a picture goes past any number of slow ones that somebody else sent.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from owl_fast.errors import ImageError, OwlError
from owl_fast.images import ImageProcessor
from owl_fast.serving import picture_process
from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits
from owl_fast.serving.picture_process import BROKEN, DATA_URI, ENCODED, HEAD, MAX_TEXT, READY, REFUSED, SQUARE

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # it takes a fifth of one; the machine may be busy
# Of the environment: the rest may hold keys.
KEPT = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME")
TOO_LONG = "the picture takes too long to decode; make it smaller, or save it anew"


@dataclass(eq=False)
class _Job:
    """A data URI or an encoded picture, whose it is, and where the RGB bytes of its square go."""

    picture: str | bytes
    client: str
    square: Future[bytes] = field(default_factory=Future)


class PictureWorkers:
    """Makes squares of pictures in `count` processes, from now until close()."""

    def __init__(self, processor: ImageProcessor, limits: Limits, count: int) -> None:
        """OwlError when a process does not start."""
        self._processor, self._limits = processor, limits
        self._share = max(1, count - 1)  # processes one client may have
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()  # by client; whose turn it is first
        self._running: Counter[str] = Counter()
        self._closed = False
        self._processes: list[_Process] = []
        self._threads: list[threading.Thread] = []
        try:
            for _ in range(count):
                self._processes.append(_Process(processor, limits))
            for i, process in enumerate(self._processes):
                process.wait_until_ready()
                self._threads.append(threading.Thread(target=self._work, args=(i,), daemon=True))
                self._threads[-1].start()
        except BaseException:
            self.close()
            raise

    @property
    def waiting(self) -> int:
        """Pictures no process has begun with."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def submit(self, picture: str | bytes, client: str = "") -> Future[bytes]:
        """RGB bytes of the square of a data URI or an encoded picture; ImageError for what is none, or costs
        too much. Cancelled while it waits, it leaves nothing behind. ApiError when too many wait."""
        job = _Job(picture, client)
        with self._changed:
            if self._closed:
                raise _closing()
            if self.waiting >= self._limits.pictures_waiting:
                raise ApiError(429, "too many pictures wait to be decoded; try again", retry_after=2)
            self._waiting.setdefault(client, deque()).append(job)
            self._changed.notify()
        # Not with the job: in a cycle with its future the picture would stay until the garbage is collected.
        job.square.add_done_callback(partial(self._forget, client))
        return job.square

    def close(self) -> None:
        """End the processes; the pictures that wait and those under way fail."""
        with self._changed:
            self._closed = True
            left = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            if job.square.set_running_or_notify_cancel():
                job.square.set_exception(_closing())
        with self._changed:  # what a thread waits for ends with its process
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.end()

    def _work(self, index: int) -> None:
        """A thread's life: pictures, one by one, through the process of this index."""
        while self._answer_one(index):
            pass  # nothing of the last picture is held while there is no other

    def _answer_one(self, index: int) -> bool:
        """False when there will be no more."""
        job = self._next()
        if job is None:
            return False
        try:
            result: bytes | Exception = self._living(index).ask(job.picture)
        except ImageError as error:
            result = error.with_traceback(None)  # whose frames hold the picture
        except Exception:  # no memory, no new process; without this thread it would stay so
            logger.exception("a picture cannot be handed to a process")
            result = ApiError(503, "no picture can be decoded now; try again", retry_after=5)
        with self._changed:
            self._running -= Counter([job.client])  # drops those with none
            self._changed.notify()
        if isinstance(result, bytes):
            job.square.set_result(result)
        else:
            job.square.set_exception(_closing() if self._closed else result)
        return True

    def _next(self) -> _Job | None:
        """A picture of the client whose turn it is; None when there will be no more."""
        with self._changed:
            while not self._closed:
                job = self._turn()
                if job is None:
                    self._changed.wait()
                elif job.square.set_running_or_notify_cancel():
                    self._running[job.client] += 1
                    return job
            return None

    def _turn(self) -> _Job | None:
        for client, jobs in self._waiting.items():
            if self._running[client] < self._share:
                job = jobs.popleft()
                if jobs:
                    self._waiting.move_to_end(client)
                else:
                    del self._waiting[client]
                return job
        return None

    def _forget(self, client: str, square: Future[bytes]) -> None:
        """Called when a job is done: one that was cancelled may still be waiting."""
        with self._changed:
            left = deque(job for job in self._waiting.get(client, ()) if job.square is not square)
            if left:
                self._waiting[client] = left
            else:
                self._waiting.pop(client, None)

    def _living(self, index: int) -> _Process:
        """The process of this index, a new one if it has died."""
        if self._processes[index].is_alive():
            return self._processes[index]
        self._processes[index].end()
        process = _Process(self._processor, self._limits)
        with self._changed:
            self._processes[index] = process
            if self._closed:
                process.kill()
        process.wait_until_ready()
        return process


class _Process:
    """This side of a process (picture_process.py)."""

    def __init__(self, processor: ImageProcessor, limits: Limits) -> None:
        self._bytes = 3 * processor.size**2
        arguments = (processor.size, int(processor.rgb_first), int(processor.crop))
        costs = (limits.picture_memory, limits.picture_cpu)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        self._seconds = limits.picture_seconds
        self._channel, other = socket.socketpair()
        with other:
            # Started anew, not forked: this process has threads. A session of its own: Ctrl-C is for the
            # server, which still needs it then.
            self._process = subprocess.Popen(
                [sys.executable, "-m", picture_process.__name__, *map(str, arguments + costs)],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        self._channel.settimeout(START_SECONDS)
        try:
            ready = self._read(HEAD.size) == HEAD.pack(READY, 0)
        except OSError:
            ready = False
        if not ready:
            self.end()
            raise OwlError("a process that decodes pictures does not start; what it says stands above")
        self._channel.settimeout(self._seconds)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, picture: str | bytes) -> bytes:
        """The square; ImageError when there is none."""
        content = picture if isinstance(picture, bytes) else picture.encode("ascii", "replace")
        try:
            head = HEAD.pack(ENCODED if isinstance(picture, bytes) else DATA_URI, len(content))
            self._channel.sendall(head)
            self._channel.sendall(content)
            kind, length = HEAD.unpack(self._read(HEAD.size))
            # What decodes strangers' bytes is believed nothing else.
            if (kind, length) != (SQUARE, self._bytes) and (kind != REFUSED or length > MAX_TEXT):
                raise ConnectionError("an answer nobody asked for")
            answer = self._read(length)
        except OSError as error:
            self.end()
            ended = self._process.returncode
            logger.warning("a picture ended its process: %s, exit status %s", error, ended)
            slow = isinstance(error, TimeoutError) or ended == -signal.SIGPROF
            raise ImageError(TOO_LONG if slow else BROKEN) from None
        if kind == REFUSED:
            raise ImageError(answer.decode("ascii", "replace"))
        return answer

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._channel.recv(count - len(data))
            if not part:
                raise ConnectionError("it closed its end")
            data += part
        return bytes(data)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Only for who reads from it: nobody may be waiting for an answer."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


def _closing() -> ApiError:
    return ApiError(503, "the server is being stopped; try again later")
