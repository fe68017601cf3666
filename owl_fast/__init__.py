"""owl_fast: run and fine-tune mPLUG-Owl, a model that reads pictures and text and answers in text.

The public face is this module; its names are imported on first use, so that `import owl_fast` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from owl_fast.errors import (
    CheckpointError,
    ContextLengthError,
    DataError,
    ImageError,
    OwlError,
    ParameterError,
    PromptError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from owl_fast.config import OwlConfig
    from owl_fast.conversation import Conversation
    from owl_fast.engine.async_stream import AsyncStream
    from owl_fast.engine.dialogue import Chat
    from owl_fast.engine.engine import Engine
    from owl_fast.engine.outputs import Event, Output, Timings, Usage
    from owl_fast.engine.reports import Memory, Stats
    from owl_fast.engine.sampling import SamplingParams
    from owl_fast.engine.stream import Stream
    from owl_fast.video import Video

__version__ = "0.1.0"

__all__ = [
    "AsyncStream",
    "Chat",
    "CheckpointError",
    "ContextLengthError",
    "Conversation",
    "DataError",
    "Engine",
    "Event",
    "ImageError",
    "Memory",
    "Output",
    "OwlConfig",
    "OwlError",
    "ParameterError",
    "PromptError",
    "SamplingParams",
    "Stats",
    "Stream",
    "Timings",
    "UnsupportedError",
    "Usage",
    "Video",
    "__version__",
]

_LAZY = {
    "AsyncStream": "owl_fast.engine.async_stream",
    "Chat": "owl_fast.engine.dialogue",
    "Conversation": "owl_fast.conversation",
    "Engine": "owl_fast.engine.engine",
    "Event": "owl_fast.engine.outputs",
    "Memory": "owl_fast.engine.reports",
    "Output": "owl_fast.engine.outputs",
    "OwlConfig": "owl_fast.config",
    "SamplingParams": "owl_fast.engine.sampling",
    "Stats": "owl_fast.engine.reports",
    "Stream": "owl_fast.engine.stream",
    "Timings": "owl_fast.engine.outputs",
    "Usage": "owl_fast.engine.outputs",
    "Video": "owl_fast.video",
}


def __getattr__(name: str) -> Any:
    """Import one of the names in _LAZY (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'owl_fast' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
