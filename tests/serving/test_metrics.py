from __future__ import annotations

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from owl_fast.serving.metrics import Metrics, merged
from tests.serving.owls import FIXED, Owls, seen, serving


def values(owls: Owls) -> dict[str, float]:
    with owls.client() as client:
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    return {
        sample.name
        + "".join(f"[{value}]" for name, value in sample.labels.items() if name != "le"): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_what_is_counted(owls: Owls) -> None:
    before = values(owls)
    with owls.openai() as client:
        reply = client.chat.completions.create(messages=seen(), **FIXED)
        list(client.chat.completions.create(messages=seen(), stream=True, **FIXED))
        for wrong in ({"model": "other"}, {"max_tokens": 0}, {"max_tokens": 10**6}):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(messages=seen(), **{**FIXED, **wrong})
    owls.idle()
    after = values(owls)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert reply.usage is not None
    tokens = reply.usage.completion_tokens
    assert grown["owl_requests_total[answered]"] == 2
    assert grown["owl_requests_total[refused 404]"] == 1
    assert grown["owl_requests_total[refused 400]"] == 2
    assert grown["owl_generation_tokens_total"] == 2 * tokens
    assert grown["owl_prompt_tokens_total"] == 2 * reply.usage.prompt_tokens
    assert grown["owl_cached_tokens_total"] > 0
    assert grown["owl_pictures_total"] >= grown["owl_pictures_cached_total"]
    assert grown["owl_first_token_seconds_count"] == 2
    assert grown["owl_inter_token_seconds_count"] == tokens - 1  # of the stream
    assert grown["owl_steps_total"] > 0
    assert grown["owl_step_seconds_total"] > 0
    for gauge in ("owl_answers_running", "owl_answers_waiting", "owl_cache_use", "owl_queue_requests"):
        assert after[gauge] == 0
    assert after["owl_silent_seconds"] == 0


def test_while_answers_run(owls: Owls) -> None:
    with owls.openai() as client:
        stream = client.chat.completions.create(
            messages=seen(), stream=True, **{**FIXED, "max_tokens": 1500}, extra_body={"ignore_eos": True}
        )
        next(stream)
        found = values(owls)
        stream.close()
    assert found["owl_answers_running"] == 1
    assert 0 < found["owl_cache_use"] < 1
    owls.idle()


@pytest.mark.parametrize("path", ["/metrics"])
def test_there_are_metrics_while_the_model_loads(path: str) -> None:
    with serving(loaded=False) as loading:
        assert "owl_first_token_seconds_count" in values(loading)


def test_replicas_are_told_apart() -> None:
    both = {"a": Metrics(), "b": Metrics()}
    for count, metrics in enumerate(both.values(), 1):
        for _ in range(count):
            metrics.ended("answered")
            metrics.first_token.observe(count)
    text = merged({name: metrics.text() for name, metrics in both.items()}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["owl_requests"].type == "counter"
    assert families["owl_first_token_seconds"].type == "histogram"
    totals = {
        sample.labels["replica"]: sample.value
        for sample in families["owl_requests"].samples
        if sample.labels == {"outcome": "answered", "replica": sample.labels["replica"]}
    }
    assert totals == {"a": 1, "b": 2}
    sums = [s.value for s in families["owl_first_token_seconds"].samples if s.name.endswith("_sum")]
    assert sums == [1, 4]
    assert text.count("# TYPE owl_requests_total counter") == 1
