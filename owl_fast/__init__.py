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
    PromptError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from owl_fast.config import OwlConfig
    from owl_fast.engine.engine import Engine
    from owl_fast.engine.sampling import SamplingParams
    from owl_fast.video import Video

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ContextLengthError",
    "DataError",
    "Engine",
    "ImageError",
    "OwlConfig",
    "OwlError",
    "PromptError",
    "SamplingParams",
    "UnsupportedError",
    "Video",
    "__version__",
]

_LAZY = {
    "Engine": "owl_fast.engine.engine",
    "OwlConfig": "owl_fast.config",
    "SamplingParams": "owl_fast.engine.sampling",
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
