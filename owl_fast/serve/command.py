"""From the arguments to a server: it listens at once, and answers when the model is loaded."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from owl_fast.command_line import ended, loading_options
from owl_fast.errors import OwlError, ParameterError
from owl_fast.serve.arguments import (
    check_pictures,
    is_loopback,
    public_hosts,
    read_arguments,
    read_keys,
)
from owl_fast.serving.listening import cannot_listen, check_packages, url_of
from owl_fast.serving.options import read_adapters, read_list

if TYPE_CHECKING:
    from owl_fast.serving.server import Server
    from owl_fast.serving.service import Service

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """What the epilog of --help says of exit codes."""
    args = read_arguments(argv)
    with _ended_by_signals():
        return ended(lambda: _run(args))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Outright, before the server has handlers of its own: numpy and torch do not survive half an import."""
    kept = {sign: signal.signal(sign, lambda *_: os._exit(0)) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sign, handler in kept.items():
            signal.signal(sign, handler)


def _run(args: argparse.Namespace) -> int:
    service, server = _listen(args)
    from owl_fast.summary import model_name

    name, url = model_name(args.model), url_of(*server.address)
    print(f"loading {name}; {url} answers when it is ready", file=sys.stderr, flush=True)
    loading = _Loading(args, name, service, server)
    loading.thread.start()
    try:
        asyncio.run(server.serve(sockets=[server.socket]))
    finally:
        server.socket.close()
        service.close()
    if loading.error is not None:
        raise loading.error
    if loading.thread.is_alive():  # stopped before it was ready
        from owl_fast.serving.heartbeat import leave

        leave(0)
    return 0


def _listen(args: argparse.Namespace) -> tuple[Service, Server]:
    """OwlError for what makes no sense, before a model is loaded for it."""
    check_packages()
    from owl_fast.serving.app import make_app, page_files
    from owl_fast.serving.guard import OPEN_PATHS, Guard
    from owl_fast.serving.heartbeat import watched
    from owl_fast.serving.server import Server
    from owl_fast.serving.service import Service, check_names
    from owl_fast.summary import model_name

    keys = read_keys(args)
    check_pictures(args)
    check_names(model_name(args.model), read_adapters(args.adapter))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    service = Service()
    alone = is_loopback(args.host)
    app = make_app(service, describe=alone, measure=alone or bool(keys), lifespan=watched(service))
    try:
        door = Guard(
            app,
            service.limits,
            keys=keys,
            public_hosts=public_hosts(args),
            open_paths=OPEN_PATHS | page_files().keys(),
        )
        server = Server(door, args.host, args.port, service.limits, on_drained=service.say_goodbye)
    except ValueError as error:
        raise ParameterError(str(error)) from None
    except OSError as error:
        raise cannot_listen(args.host, args.port, error) from None
    return service, server


class _Loading:
    """Reads the model in a thread of its own; error: why it could not, which ends the server."""

    def __init__(self, args: argparse.Namespace, name: str, service: Service, server: Server) -> None:
        self.error: OwlError | None = None
        self._args, self._name, self._service, self._server = args, name, service, server
        # A daemon: Ctrl-C does not wait for the rest of a large model.
        self.thread = threading.Thread(target=self._run, name="owl_fast-load", daemon=True)

    def _run(self) -> None:
        try:
            self._load()
        except OwlError as error:
            self.error = error
        except Exception as error:
            _log.exception("the model cannot be loaded")
            self.error = OwlError(f"the model cannot be loaded ({type(error).__name__})")
        if self.error is not None:
            self._server.should_exit = True

    def _load(self) -> None:
        from owl_fast.summary import plan_text

        begin, args = time.perf_counter(), self._args
        engine = self._service.load(
            args.model,
            self._name,
            adapters=read_adapters(args.adapter),
            hosts=read_list(args.image_hosts),
            image_dir=args.image_dir,
            max_context=args.max_context,
            max_batch=args.max_batch,
            speculation=args.speculation,
            **loading_options(args),
        )
        plan = plan_text(self._name, engine, time.perf_counter() - begin)
        print(f"ready: {url_of(*self._server.address)} · {plan}", flush=True)
