"""The original's training records, one JSON object a line:

{"image": ["a.jpg"], "text": "<header>\\nHuman: <image>\\nHuman: ...\\nAI: ...", "task_type": "llava_sft"}

"image" is missing or empty in text-only records; other keys are ignored, as in the original.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from owl_fast.errors import DataError
from owl_fast.prompts import parse_record_text
from owl_fast.training.sample import Sample


def read_original_jsonl(path: str | Path, image_root: str | Path | None = None) -> Iterator[Sample]:
    """Samples of a file in order; empty lines are passed over.

    image_root: folder that picture paths start from; the file's own by default. DataError gives file, line
    and reason.
    """
    path = Path(path)
    root = path.parent if image_root is None else Path(image_root)
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _read_record(line, f"{path}:{number}", root)


def _read_record(line: str, name: str, root: Path) -> Sample:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise DataError(f'{name}: wanted an object with a string "text"')
    images = _images(record, name)
    messages = parse_record_text(record["text"], len(images), name)
    return Sample(messages, [root / image for image in images], name)


def _images(record: dict[str, Any], name: str) -> list[str]:
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise DataError(f'{name}: "image" must be a path or a list of paths, got {images!r:.80}')
    return images
