"""Find libowl_cpu, the optional C++ operations (kernels/cpu), and check that it fits this source.

An install puts the library beside the package; `make native` puts it into build/ of a plain checkout.
Nothing is loaded at import, and a missing library is never an error: every operation has a torch path.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

ABI_VERSION = 2  # OWL_ABI_VERSION in kernels/cpu/owl_cpu.h
LIBRARY_NAME = "libowl_cpu.so"

_log = logging.getLogger("owl_fast")


@dataclass(frozen=True)
class Native:
    """What a search for the library found: `library` and `path`, or the `reason` why there is none."""

    library: ctypes.CDLL | None
    path: Path | None
    reason: str | None


def candidates() -> list[Path]:
    """Where the library may lie, best first: every folder of the package, then build/ of a checkout.

    An editable install gives the package two folders: the sources, and the one CMake installed into.
    """
    folders = [Path(folder) for folder in sys.modules["owl_fast"].__path__]
    checkouts = [folder.parent for folder in folders if (folder.parent / "CMakeLists.txt").is_file()]
    return [
        *(folder / LIBRARY_NAME for folder in folders),
        *(checkout / "build" / LIBRARY_NAME for checkout in checkouts),
    ]


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
            "native CPU operations are off: %s. Answers stay right, CPU runs are slower; "
            "`pip install .` or `make native` builds them.",
            found.reason,
        )
    return found.library
