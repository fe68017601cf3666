"""The engine under asyncio: several answers at once, shown as they come, one of them cut short.

python examples/async_use.py [MODEL]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from owl_fast import Engine, OwlError

PICTURES = Path(__file__).parent


def question(picture: str, text: str) -> list[dict[str, object]]:
    image = {"type": "image", "image": PICTURES / picture}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


async def show(engine: Engine, name: str, messages: list[dict[str, object]]) -> None:
    stream = engine.astream(messages, max_tokens=40)
    async for event in stream:
        print(f"[{name}]{event.text}", flush=True)
    print(f"[{name}] = {stream.output.text} ({stream.output.finish_reason})")


async def main(model: str | None = None) -> None:
    engine = await asyncio.to_thread(Engine.from_pretrained, model, max_context=512)
    # Both are computed in the same steps. The event loop stays free all the while.
    await asyncio.gather(
        show(engine, "color", question("scene.png", "What color is the star?")),
        show(engine, "where", question("scene.png", "Where is the circle?")),
    )
    # Leaving the block cancels what is left of the answer and frees its place at once.
    async with engine.astream(question("two.png", "Describe the picture.")) as stream:
        async for event in stream:
            print(f"[brief]{event.text}", flush=True)
            if len(event.text.strip()) > 1:
                break
    print(f"{engine.stats().cancelled} answer cut short")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except OwlError as error:
        raise SystemExit(f"error: {error}") from None
