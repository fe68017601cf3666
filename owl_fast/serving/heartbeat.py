"""Whether the model still does what it is asked to, and the end of the process when it does not.

A step that fails takes its own answers with it and no more. One that never ends, or a GPU that is lost, can
only be cured from outside: everybody who waits is told, and the process leaves with a code that says so, for
whoever starts it again.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NoReturn

import torch

from owl_fast.serving.errors import ApiError
from owl_fast.serving.service import Service

EXIT_CODE = 70  # EX_SOFTWARE
LAST_WORDS = 0.5  # seconds for telling those who wait

logger = logging.getLogger(__name__)


class Heartbeat:
    def __init__(self, service: Service, leave: Callable[[], object]) -> None:
        """leave: ends the process."""
        self._service, self._leave = service, leave
        self._failed_steps = 0

    async def watch(self) -> None:
        """Look every now and then, for ever."""
        limits = self._service.limits
        while True:
            if reason := await self._trouble():
                logger.critical("%s; the process ends", reason)
                self._service.admission.end_all(
                    ApiError(503, "the model has stopped working; the server ends", code="model_failed")
                )
                await asyncio.sleep(LAST_WORDS)
                self._leave()
                return
            await asyncio.sleep(min(limits.heartbeat, limits.hang) / 10)

    async def _trouble(self) -> str | None:
        engine = self._service.engine
        if engine is None:
            return None
        stats = engine.stats()
        if stats.silent_seconds > self._service.limits.hang:
            return f"nothing has been heard of the model for {stats.silent_seconds:.0f} s"
        if stats.failed_steps > self._failed_steps:
            self._failed_steps = stats.failed_steps
            return await self._device_trouble(engine.model.device)
        return None

    async def _device_trouble(self, device: torch.device) -> str | None:
        """After a fault a GPU may refuse everything, to this process."""
        if device.type == "cpu":
            return None
        try:
            await asyncio.wait_for(asyncio.to_thread(_compute, device), self._service.limits.hang)
        except Exception as error:
            return f"{device} does not compute any more ({type(error).__name__})"
        return None


def _compute(device: torch.device) -> None:
    torch.cuda.synchronize(device)
    torch.ones(1, device=device).sum().item()


def leave(code: int = EXIT_CODE) -> NoReturn:
    """Without a look at what hangs, or at threads inside torch, with which the interpreter's end aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def watched(service: Service) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """The lifespan of an application that has its process to itself."""

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        watching = Heartbeat(service, leave).watch(), stay_alive(service.limits.frozen)
        tasks = [asyncio.create_task(work) for work in watching]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    return lifespan


async def stay_alive(seconds: float) -> None:
    """Should the event loop stand still for so long, whatever holds it, the process ends with code 1 and says
    where it stood."""
    try:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True)
            await asyncio.sleep(seconds / 10)
    finally:
        faulthandler.cancel_dump_traceback_later()
