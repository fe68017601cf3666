"""Requests to a server of replicas, and the messages of its replies."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image


def chat(picture: bytes | None, text: str, **others: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture is not None:
        uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
    messages = [{"role": "user", "content": content}]
    return {"model": "owl-nano", "messages": messages, "temperature": 0, **others}


def encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def encoded_small(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def picture(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (color, 255 - color, 77)).save(buffer, "PNG")
    return buffer.getvalue()
