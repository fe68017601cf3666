"""What a command that serves says before it does: what is missing, why a port cannot be had, where it is."""

from __future__ import annotations

import errno
import importlib

from owl_fast.errors import ParameterError, UnsupportedError


def check_packages() -> None:
    """UnsupportedError names one of the server's packages that is not installed."""
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UnsupportedError(
                f"the server needs the package {error.name}: pip install '.[serve]' in the checkout"
            ) from None


def cannot_listen(host: str, port: int, error: OSError) -> ParameterError:
    # asyncio and socket add to the system's words what stands here already.
    reason = (error.strerror or type(error).__name__).partition(" (while")[0]
    hint = "; say --port N, or 0 for any free one" if error.errno == errno.EADDRINUSE else ""
    return ParameterError(f"cannot listen on {host}, port {port} ({reason}){hint}")


def url_of(host: str, port: int) -> str:
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{port}"
