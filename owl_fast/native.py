"""Find libowl_cpu, the optional C++ operations (kernels/cpu), and check that it fits this source.

An install puts the library beside the package; `make native` puts it into build/ of a plain checkout.
Nothing is loaded at import, and a missing library is never an error: every operation has a torch path.
The operations of a process share one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from owl_fast.machine import cpu_count

ABI_VERSION = 5  # OWL_ABI_VERSION in kernels/cpu/owl_cpu.h
LIBRARY_NAME = "libowl_cpu.so"
COST = (
    "on a CPU answers take longer without them, with quantized weights many times as long, and their last "
    "digits may depend on what else is in the batch"
)

_log = logging.getLogger("owl_fast")


@dataclass(frozen=True)
class Native:
    """What a search for the library found: `library` and `path`, or the `reason` why there is none."""

    library: ctypes.CDLL | None
    path: Path | None
    reason: str | None


def candidates() -> list[Path]:
    """Where the library may lie, best first: every folder of the package, build/ of a checkout, an install.

    An editable install gives the package two folders: the sources, and the one CMake installed into. A plain
    install is hidden by the checkout from a `python -m` that is typed there.
    """
    folders = [Path(folder) for folder in sys.modules["owl_fast"].__path__]
    checkouts = [folder.parent for folder in folders if (folder.parent / "CMakeLists.txt").is_file()]
    places = [*folders, *(checkout / "build" for checkout in checkouts), *_installed()]
    return [place / LIBRARY_NAME for place in dict.fromkeys(places)]


def _installed() -> list[Path]:
    """The folder of the package that pip installed, if it did."""
    from importlib import metadata

    try:
        return [Path(str(metadata.distribution("owl-fast").locate_file("owl_fast")))]
    except metadata.PackageNotFoundError:
        return []


def probe(paths: list[Path]) -> Native:
    """Load the first of `paths` that exists and has the right ABI number; never raises."""
    reasons: list[str] = []
    for path in paths:
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
            version = int(library.owl_abi_version())
        except (OSError, AttributeError) as error:
            reasons.append(f"{path} cannot be loaded ({error})")
            continue
        if version == ABI_VERSION:
            return Native(library, path, None)
        reasons.append(f"{path} has ABI {version}, this source needs {ABI_VERSION}")
    return Native(None, None, "; ".join(reasons) or f"{LIBRARY_NAME} is not built")


@functools.cache
def status() -> Native:
    """The one search of this process; says nothing."""
    return probe(candidates())


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None; the first caller who gets None also logs why and what it costs."""
    found = status()
    if found.library is None:
        _log.warning(
            "native CPU operations are off: %s; %s; `pip install .` or `make native` builds them",
            found.reason,
            COST,
        )
    return found.library


class Pool:
    """Threads of the library that wait for work, asleep when there is none for a while.

    threads: counts the one that calls. A call that finds the pool in use runs in its own thread alone.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        create, self._destroy = library.owl_pool_create, library.owl_pool_destroy
        create.argtypes, create.restype = (ctypes.c_int32,), ctypes.c_void_p
        self._destroy.argtypes, self._destroy.restype = (ctypes.c_void_p,), None
        self.threads = threads
        self.handle: int | None = create(threads)
        if self.handle is None:
            raise OSError(f"{threads} threads cannot be started: this process or machine has too many")

    def close(self) -> None:
        """Ends the threads; no operation may be running on them. Again: nothing happens."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._destroy(handle)


_pool: Pool | None = None
_pool_lock = threading.Lock()


def pool() -> int | None:
    """The handle of the shared pool, with a thread for every core this process may use; None without library.

    It is started by the first to ask, and again after close_pool or, in the child, a fork.
    """
    global _pool
    with _pool_lock:
        if _pool is None and (found := library()) is not None:
            _pool = Pool(found, cpu_count())
            _watch_forks()
        return None if _pool is None else _pool.handle


def close_pool() -> None:
    """End the shared threads once nothing uses them any more."""
    global _pool
    with _pool_lock:
        if _pool is not None:
            _pool.close()
        _pool = None


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_forget_pool)


def _forget_pool() -> None:
    """The child of a fork has the memory of the pool, but none of its threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()
