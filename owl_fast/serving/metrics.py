"""Counts for Prometheus: what the engine knows is asked when somebody looks, the rest counted as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from owl_fast.engine.engine import Engine
from owl_fast.engine.reports import Stats
from owl_fast.serving.admission import Admission

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

# (name, what it is, its value): of the engine.
_COUNTERS: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("owl_prompt_tokens", "Positions of prompts of ended answers", lambda s: s.usage.prompt_tokens),
    ("owl_image_tokens", "Positions of pictures, among those of prompts", lambda s: s.usage.image_tokens),
    (
        "owl_cached_tokens",
        "Positions of prompts that were found in the cache",
        lambda s: s.usage.cached_tokens,
    ),
    ("owl_generation_tokens", "Tokens of ended answers", lambda s: s.usage.completion_tokens),
    ("owl_steps", "Batches computed", lambda s: s.steps),
    ("owl_failed_steps", "Batches that failed", lambda s: s.failed_steps),
    ("owl_step_seconds", "Seconds spent in steps", lambda s: s.busy_seconds),
    ("owl_preemptions", "Running answers that had to wait again", lambda s: s.preemptions),
    ("owl_pictures", "Pictures asked for", lambda s: s.pictures),
    ("owl_pictures_cached", "Pictures asked for whose rows were in the cache", lambda s: s.pictures_cached),
    ("owl_guesses", "Tokens guessed (--speculation)", lambda s: s.guesses),
    ("owl_guesses_right", "Guesses that came true", lambda s: s.guesses_right),
)
_GAUGES: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("owl_answers_running", "Answers that are generated", lambda s: s.running),
    ("owl_answers_waiting", "Answers that wait for their turn", lambda s: s.waiting),
    ("owl_cache_use", "Share of the cache that answers hold", lambda s: 1 - s.blocks_free / s.blocks),
    ("owl_silent_seconds", "Since the model was last seen to go on", lambda s: s.silent_seconds),
)


class Metrics:
    """Of one application; nothing is registered globally."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "owl_requests", "Requests for answers by their end", ["outcome"], registry=self._registry
        )
        self.first_token = Histogram(
            "owl_first_token_seconds",
            "From the request to the first token",
            buckets=_FIRST,
            registry=self._registry,
        )
        self.between_tokens = Histogram(
            "owl_inter_token_seconds",
            "Between two tokens of a stream",
            buckets=_BETWEEN,
            registry=self._registry,
        )

    def ended(self, outcome: str) -> None:
        """outcome: one of a few words."""
        self._requests.labels(outcome).inc()

    def watch(self, engine: Engine, admission: Admission) -> None:
        self._registry.register(_OfEngine(engine, admission))

    def text(self) -> bytes:
        return generate_latest(self._registry)


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Of several applications: each has its name as the label "replica"."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _OfEngine(Collector):
    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine, self._admission = engine, admission

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        waiting = self._admission.waiting
        for name, text, value in _COUNTERS:
            yield CounterMetricFamily(name, text, value=value(stats))
        for name, text, value in _GAUGES:
            yield GaugeMetricFamily(name, text, value=value(stats))
        yield GaugeMetricFamily("owl_queue_requests", "Requests that wait", value=len(waiting))
        positions = sum(ticket.positions for ticket in waiting)
        yield GaugeMetricFamily(
            "owl_queue_positions", "Positions of the prompts of requests that wait", value=positions
        )

    def describe(self) -> Iterable[Metric]:
        return ()
