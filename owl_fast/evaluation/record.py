"""What stands with a score: the model, the prompt, the options, the data and the code it was made with.

settings    what must be the same for answers to belong together, with hashes of everything that was read
runs        one entry each time the command was started on them: versions, commit, device, precision, seconds
counts      questions, answered, missing

Nothing in it tells a path or a name of the machine it was made on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from owl_fast.checkpoints import open_source, weights_sha256
from owl_fast.checkpoints.load import empty_model
from owl_fast.engine.opening import BUNDLED
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import DataError
from owl_fast.evaluation.json_lines import replace_file
from owl_fast.files import is_there, read_json
from owl_fast.hub import local_path
from owl_fast.lora import read_adapter
from owl_fast.prompts import IMAGE_TEXT, TextPiece, chat_pieces

ROOT = Path(__file__).resolve().parents[2]
# How the weights are held, of the options of Engine.from_pretrained.
HELD = ("dtype", "quant", "quant_vision", "kv_cache", "exact")
TOLD = ("tokenizer", "config", "vision_heads", "abstractor_heads")  # those that open_source takes


def model_settings(model: str | None, adapter: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes of the weights, and how they are to be held. options: of Engine.from_pretrained."""
    told = {name: options[name] for name in TOLD if name in options}
    source = open_source(BUNDLED if model is None else local_path(model), **told)
    adapter_folder = source.adapter if adapter is None else local_path(adapter)
    held = {name: options.get(name) for name in HELD}
    vision = options.get("vision")
    return {
        "weights_sha256": weights_sha256(source.weights),
        "adapter_sha256": None
        if adapter_folder is None
        else read_adapter(empty_model(source.config), adapter_folder).sha256,
        "vision": "torch" if vision is None else _exported(vision),
        **held,
        "heads": [source.config.vision.num_attention_heads, source.config.abstractor.num_attention_heads],
    }


def _exported(vision: str) -> str:
    """onnx:DIR without the path."""
    kind, _, folder = vision.partition(":")
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    return f"{kind} {files_sha256(files)}"


def prompt_settings(system: str | None) -> dict[str, Any]:
    """The template as a question with a picture is put into it."""
    head = [] if system is None else [{"role": "system", "content": system}]
    parts = [{"type": "image", "image": b""}, {"type": "text", "text": "{question}"}]
    pieces, _ = chat_pieces([*head, {"role": "user", "content": parts}])
    shown = (piece.text if isinstance(piece, TextPiece) else IMAGE_TEXT for piece in pieces)
    return {"template": "".join(shown)}


def decoding_settings(params: SamplingParams) -> dict[str, Any]:
    decoding = asdict(params)
    return {**decoding, "stop": list(params.stop_strings)}


def file_sha256(path: Path) -> str | None:
    """None when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def files_sha256(paths: Sequence[Path]) -> str:
    """Over names and contents."""
    lines = "".join(f"{path.name} {file_sha256(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def code(version: str) -> dict[str, Any]:
    """version: of owl_fast. Of a checkout also the commit, and whether any file of it was changed."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {
        "owl_fast": version,
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Record:
    """The record at a path, made by the first run and continued by later ones.

    runs: how the command was started, newest last.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """DataError for a file that is none."""
        self.path = path
        self._settings: Any = json.loads(json.dumps(settings))  # as it will be read again
        self._found = read_json(path) if is_there(path) else None
        self.runs: list[dict[str, Any]] = []
        if self._found is not None:
            kept, runs = self._found.get("settings"), self._found.get("runs", [])
            if type(kept) is not dict or type(runs) is not list or not all(type(run) is dict for run in runs):
                raise DataError(f"{path}: no record of a run; choose another place, or remove it")
            self.runs = runs

    @property
    def found(self) -> bool:
        return self._found is not None

    def check(self, free: Collection[str] = ()) -> None:
        """DataError names what is not as it was. free: names that may have changed."""
        if self._found is None:
            return
        found = differences(self._found["settings"], self._settings)
        self._refuse([change for change in found if change[0] not in free])

    def begin(self, version: str, device: str, precision: str, batch: int) -> None:
        """A run of its own; DataError when the weights are held otherwise than before."""
        if self.runs:
            before = self.runs[-1].get("precision")
            self._refuse([("precision", before, precision)] if before != precision else [])
        run = {**code(version), "device": device, "precision": precision, "batch": batch}
        self.runs.append({**run, "answered": 0, "cut": 0, "seconds": 0.0})

    def write(self, counts: Mapping[str, int], **more: Any) -> None:
        """more: what else stands in the file, in front. DiskError."""
        whole = {**more, "counts": counts, "settings": self._settings, "runs": self.runs}
        replace_file(self.path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())

    def _refuse(self, changes: Sequence[tuple[str, Any, Any]]) -> None:
        if changes:
            said = "; ".join(f"{name} was {_shown(old)}, now {_shown(new)}" for name, old, new in changes[:4])
            more = f"; and {len(changes) - 4} more" if len(changes) > 4 else ""
            raise DataError(
                f"{self.path}: the answers there were made otherwise: {said}{more}. "
                "Go on as it was begun, or begin elsewhere (another --name or --out)"
            )


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, before, now) of whatever differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}..."
    return f"{json.dumps(value, ensure_ascii=False):.80}"
