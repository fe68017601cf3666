"""Plain torch: the references of kernels/ where the kernels would run."""

from __future__ import annotations

from benchmarks.steps import Steps
from benchmarks.timing import Run
from owl_fast import ops

NAME = "plain torch"


def plain(run: Run) -> Run:
    def references() -> object:
        with ops.kernels(False):
            return run()

    return references


def steps(seconds: Steps) -> Steps:
    """Each step with the references; what comes in between is not."""

    def step() -> float | None:
        with ops.kernels(False):
            return next(seconds, None)

    while (value := step()) is not None:
        yield value
