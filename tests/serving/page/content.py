"""What the tests of the page say and show, and the form in which the server gets it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.serving.page_server import PageServer

EXAMPLES = Path(__file__).parents[3] / "examples"
SCENE, SIGN, TWO = (EXAMPLES / name for name in ("scene.png", "sign.png", "two.png"))
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> & **bold** [a](javascript:1)'
STATISTICS = r"3 tok( · [\d.]+ tok/s)? · first token \d+ ms · context 23"


def uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def shown(*paths: Path, text: str) -> list[dict[str, Any]]:
    """Content of a message with pictures, as it is sent."""
    parts = [{"type": "image_url", "image_url": {"url": uri(path)}} for path in paths]
    return [*parts, {"type": "text", "text": text}]


def sent_pictures(server: PageServer) -> list[Image.Image]:
    parts = server.requests[-1]["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
