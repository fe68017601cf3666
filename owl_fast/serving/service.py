"""What answers: nothing while the model is loading, then an engine with its adapters."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from owl_fast.engine.adapters import BASE, DEFAULT
from owl_fast.engine.engine import Engine
from owl_fast.errors import ParameterError
from owl_fast.serving.admission import Admission
from owl_fast.serving.errors import ApiError, loading
from owl_fast.serving.limits import Limits
from owl_fast.serving.media import Media
from owl_fast.serving.metrics import Metrics


def check_names(model: str, adapters: Collection[str]) -> None:
    """ParameterError for an adapter with a name of the model's."""
    for name in {model, BASE, DEFAULT}.intersection(adapters):
        raise ParameterError(f"adapter {name}: the model itself has this name; take another")


class PictureReader(Protocol):
    """What is needed of media.Media."""

    async def read(self, url: str, client: str = "") -> object: ...

    def close(self) -> None: ...


class Service:
    """One engine, for the whole application. But for `load` and `open`, all happens in one event loop."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.admission = Admission(self.limits)
        self.metrics = Metrics()
        self.engine: Engine | None = None
        self._pictures: PictureReader | None = None
        self._models: dict[str, str] = {}  # name -> adapter
        self._since = int(time.time())

    def load(
        self,
        model: str | None,
        name: str,
        *,
        adapters: Mapping[str, str],
        hosts: Collection[str] = (),
        image_dir: str | None = None,
        **options: Any,
    ) -> Engine:
        """All that `open` needs, in seconds to minutes. adapters: name -> folder. hosts, image_dir: see
        media.Media. options: of Engine.from_pretrained. OwlError."""
        check_names(name, adapters)
        engine = Engine.from_pretrained(model, **options)
        for adapter, folder in adapters.items():
            engine.load_adapter(adapter, folder)
        engine.warm_up(self.limits.step)
        self.open(engine, name, Media(engine.processor, self.limits, hosts, image_dir))
        # A full collection would stop everything, for 0.15 s: let it not look at what is there to stay.
        gc.collect()
        gc.freeze()
        return engine

    def open(self, engine: Engine, name: str, pictures: PictureReader) -> None:
        """From now on there are answers. name: of the model; its adapters have their own."""
        self._pictures = pictures
        self._models = {name: DEFAULT if DEFAULT in engine.adapters else BASE}
        self._models |= {adapter: adapter for adapter in engine.adapters if adapter != DEFAULT}
        self._since = int(time.time())
        self.metrics.watch(engine, self.admission)
        self.engine = engine

    def say_goodbye(self) -> None:
        """End what is still being answered."""
        self.admission.end_all(ApiError(503, "the server is shutting down", code="shutting_down"))

    def close(self) -> None:
        """The model may go on, but pictures are not read any more."""
        if self._pictures is not None:
            self._pictures.close()
        gc.unfreeze()

    @property
    def running(self) -> Engine:
        """The engine; ApiError while it is loading."""
        if self.engine is None:
            raise loading()
        return self.engine

    def check_loaded(self) -> None:
        """ApiError while the model is loading."""
        _ = self.running

    def check_ready(self) -> None:
        """ApiError unless a request would be answered now."""
        silent = self.running.stats().silent_seconds
        if silent > self.limits.heartbeat:
            raise ApiError(503, f"nothing has been heard of the model for {silent:.0f} s", code="not_ready")

    def adapter(self, model: str) -> str:
        """Behind a model's name; ApiError if there is none."""
        self.check_loaded()
        if model in self._models:
            return self._models[model]
        raise ApiError(
            404,
            "there is no model of this name; GET /v1/models lists those there are",
            code="model_not_found",
            param="model",
        )

    def models(self) -> list[dict[str, Any]]:
        """What clients hear of all models."""
        self.check_loaded()
        return [self.model(name) for name in self._models]

    def model(self, name: str) -> dict[str, Any]:
        """What clients hear of a model; ApiError if there is none."""
        self.adapter(name)
        main = next(iter(self._models))
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": "owl_fast",
            "parent": None if name == main else main,
            "max_model_len": self.running.max_context,
        }

    async def pictures(self, urls: Sequence[str], client: str) -> list[object]:
        """What the URLs name, as the engine takes it; ApiError."""
        assert self._pictures is not None, "the model is there"
        return await asyncio.gather(*(self._pictures.read(url, client) for url in urls))
