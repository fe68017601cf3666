"""A server in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from owl_fast.serving.limits import Limits
from owl_fast.serving.server import Server


@contextmanager
def running(app: Any, limits: Limits, on_drained: Callable[[], object] | None = None) -> Iterator[Server]:
    """On a free port of 127.0.0.1, until the block is left."""
    ready = threading.Event()
    server = Server(
        app, "127.0.0.1", 0, limits, started=lambda host, port: ready.set(), on_drained=on_drained
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[server.socket])))
    thread.start()
    try:
        assert ready.wait(20)
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
        server.socket.close()
        assert not thread.is_alive()
