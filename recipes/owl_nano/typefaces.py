"""Finding the DejaVu typefaces: from matplotlib (the `recipe` extra), else from the system's fonts."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont


@lru_cache(maxsize=1)
def _folder() -> Path | None:
    """Where matplotlib keeps the faces, or None without matplotlib (found without importing it)."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@lru_cache(maxsize=1024)
def load_face(file: str, pixels: int) -> ImageFont.FreeTypeFont:
    """The face in `file`, e.g. "DejaVuSans-Bold.ttf", at a letter size in pixels.

    Raises FileNotFoundError when neither matplotlib nor the system has it.
    """
    folder = _folder()
    try:
        return ImageFont.truetype(str(folder / file) if folder else file, pixels)
    except OSError as error:
        raise FileNotFoundError(
            f"typeface {file} is not in {folder or 'the system fonts'}; it comes with matplotlib: "
            "pip install '.[recipe]' in the checkout"
        ) from error
