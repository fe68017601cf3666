"""Memory of this process and of the machine, and the system's cache of files (Linux)."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path
from types import TracebackType


def resident_bytes() -> int:
    """Anonymous and shared memory of this process; pages of mapped files are the system's to take back."""
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


class MemoryPeak:
    """Largest resident_bytes() while the block runs, sampled every `interval` seconds by a thread."""

    def __init__(self, interval: float = 0.005) -> None:
        self.value = 0
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.value = max(self.value, resident_bytes())

    def _sample(self) -> None:
        while not self._done.wait(self._interval):
            self.value = max(self.value, resident_bytes())


def release_to_system() -> None:
    """What is free goes back to the system, so that it does not count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int:
    """Memory the system can hand out without swapping."""
    with open("/proc/meminfo", encoding="ascii") as info:
        fields = dict(line.split(":", 1) for line in info)
    return int(fields["MemAvailable"].split()[0]) << 10


def forget_cached(path: Path) -> None:
    """Drop a file's pages from the system's cache, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
