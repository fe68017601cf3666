"""Plain torch: the references of kernels/ where the kernels would run."""

from __future__ import annotations

from benchmarks.timing import Run
from owl_fast import ops

NAME = "plain torch"


def plain(run: Run) -> Run:
    def references() -> object:
        with ops.kernels(False):
            return run()

    return references
