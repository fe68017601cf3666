"""transformers' LLaMA over the weights of a folder of ours, as a small server: one request at a time.

    python -m benchmarks.peers.transformers_server FOLDER --device cpu --port 8001

It has the part of the protocol that the benchmark needs: greedy answers of a given length to a text, streamed
token by token. Who leaves is noticed, in the queue and within a token of an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.transformers_llama import llama
from owl_fast.checkpoints import load_model
from owl_fast.config import OwlConfig
from owl_fast.engine.placement import pick_dtype
from owl_fast.tokenizer import StreamDecoder, Tokenizer


class Completion(BaseModel):
    prompt: str
    max_tokens: int = 16


class Tokens(BaseStreamer):  # type: ignore[misc]
    """Hands the ids that generate() finds to the event loop; None at the end."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self._waiting, self._prompt_seen = asyncio.get_running_loop(), False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._hand_over(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        self._hand_over(None)

    def _hand_over(self, token: int | None) -> None:
        self._waiting.call_soon_threadsafe(self.queue.put_nowait, token)


class Answers:
    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer, self._turn = model, tokenizer, asyncio.Lock()
        model.generation_config.eos_token_id = None

    async def stream(self, asked: Completion) -> AsyncIterator[str]:
        async with self._turn:
            tokens, left = Tokens(), threading.Event()
            running = asyncio.create_task(asyncio.to_thread(self._generate, asked, tokens, left))
            try:
                decoder = StreamDecoder(self._tokenizer, begun=True)
                while (token := await tokens.queue.get()) is not None:
                    yield _event(decoder.push(token), None)
                yield _event(decoder.flush(), "length")
                yield "data: [DONE]\n\n"
            finally:
                left.set()
                await running

    def _generate(self, asked: Completion, tokens: Tokens, left: threading.Event) -> None:
        device = self._model.device
        ids = [self._tokenizer.bos_id, *self._tokenizer.encode(asked.prompt, literal=True)]
        config = GenerationConfig(max_new_tokens=asked.max_tokens, do_sample=False, pad_token_id=0)

        def stop(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return torch.full((len(ids),), left.is_set(), device=device)

        with torch.inference_mode():
            prompt = torch.tensor([ids], device=device)
            mask = torch.ones_like(prompt)
            self._model.generate(
                prompt,
                attention_mask=mask,
                generation_config=config,
                streamer=tokens,
                stopping_criteria=[stop],
            )


def make_app(answers: Answers, name: str) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"}]}

    @app.post("/v1/completions")
    async def complete(asked: Completion) -> StreamingResponse:
        return StreamingResponse(answers.stream(asked), media_type="text/event-stream")

    return app


def _event(text: str, finish: str | None) -> str:
    event = {
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "finish_reason": finish}],
    }
    return f"data: {json.dumps(event)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    config = OwlConfig.from_file(args.folder / "config.json")
    model = load_model(args.folder, device=args.device, dtype=pick_dtype("auto", args.device, config))
    tokenizer = Tokenizer.from_file(args.folder / "tokenizer.model")
    app = make_app(Answers(llama(model), tokenizer), args.folder.name)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
