"""Models by their id on the Hugging Face hub, such as MAGAer13/mplug-owl-llama-7b.

huggingface_hub does the work: its cache, its login, its environment variables (HF_HUB_OFFLINE, HF_HOME ...).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_DESCRIPTION = ("*.json", "tokenizer.model")
# A repository may hold the weights in both formats; the second is asked for when the first is not there.
_WEIGHTS = ("*.safetensors", "*.bin")


def local_path(model: str | Path) -> Path:
    """Where a model lies on this machine: an existing path as it is, a hub id downloaded where necessary.

    What is neither comes back as a path, for the reader of files to complain about. CheckpointError: the hub
    does not have it or cannot be reached. UnsupportedError: huggingface_hub is not installed. ParameterError:
    no name at all.
    """
    if not isinstance(model, str | os.PathLike):
        raise ParameterError(f"a {type(model).__name__} came where a path or a hub id was wanted")
    if os.path.lexists(model) or not isinstance(model, str) or not _ID.fullmatch(model):
        return Path(model)
    try:
        import huggingface_hub
    except ImportError:
        raise UnsupportedError(
            f"{model}: no such file or folder; to get it from the Hugging Face hub, "
            "pip install '.[hub]' in the checkout"
        ) from None
    folder = Path()
    for weights in _WEIGHTS:
        try:
            folder = Path(huggingface_hub.snapshot_download(model, allow_patterns=[*_DESCRIPTION, weights]))
        # Network, disk, login, offline mode: a dozen kinds without a common base.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(
                f"{model}: no such file or folder, and as an id of the Hugging Face hub it cannot be had: "
                f"{type(error).__name__}, {reason:.300}"
            ) from None
        if any(folder.glob(weights)):
            break
    return folder
