"""With which code a training process ends: schedulers and scripts act on it."""

from __future__ import annotations

from owl_fast.errors import DiskError, DivergedError, LockedError, OwlError, StoppedError, TooManyBadRows

CODES: tuple[tuple[type[OwlError], int], ...] = (
    (DiskError, 3),
    (DivergedError, 4),
    (TooManyBadRows, 5),
    (LockedError, 6),
)
SIGNALLED = 128  # plus the number of the signal, as shells have it: 143 for SIGTERM, 130 for SIGINT


def exit_code(error: OwlError) -> int:
    """3 disk, 4 diverged, 5 too many bad rows, 6 locked, 143 and 130 stopped by a signal, 1 anything else."""
    if isinstance(error, StoppedError):
        return SIGNALLED + error.signal
    return next((code for kind, code in CODES if isinstance(error, kind)), 1)
