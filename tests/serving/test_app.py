"""The routes: what there is, what is said while the model loads, what is never there."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest

from owl_fast.prompts import IMAGE_ID
from owl_fast.serving.app import make_app, page_files
from owl_fast.serving.service import Service
from tests.serving.owls import FIXED, MODEL, Owls, asking, data_uri, nano, seen, serving

ROUTES = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
}


def routes(app: object) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
    }


def test_there_are_these_routes_and_no_others() -> None:
    page = {("GET", path) for path in page_files()}
    assert routes(make_app(Service(), describe=False)) == ROUTES | page
    assert routes(make_app(Service())) == ROUTES | page | {("GET", "/openapi.json")}
    assert routes(make_app(Service(), describe=False, measure=False)) == (
        (ROUTES | page) - {("GET", "/metrics")}
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(
            ("GET", path, 404)
            for path in ("/docs", "/redoc", "/v1", "/v1/", "/admin", "/static/x", "/v1/models/")
        ),
        *(
            ("GET", path, 404)
            for path in ("/../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/v1/load_lora")
        ),
        *(("GET", path, 405) for path in ("/v1/chat/completions", "/tokenize")),
        *(("DELETE", path, 405) for path in ("/v1/models", "/health")),
        *(("POST", path, 405) for path in ("/v1/models", "/metrics")),
    ],
)
def test_what_is_not_there(owls: Owls, method: str, path: str, status: int) -> None:
    with owls.client() as client:
        reply = client.request(method, path, json={} if method == "POST" else None)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_while_the_model_loads() -> None:
    with serving(loaded=False) as loading, loading.client() as client:
        for method, path in sorted(ROUTES - {("GET", "/metrics")}):
            reply = client.request(method, path, json={} if method == "POST" else None)
            assert reply.status_code == 503, path
            assert reply.json()["error"]["code"] == "model_loading"
            assert int(reply.headers["retry-after"]) > 0


def test_health(owls: Owls) -> None:
    with owls.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
        for path in ("/health", "/ready", "/"):
            reply = client.head(path)
            assert (reply.status_code, reply.content) == (200, b"")


def test_replies_do_not_wait_for_acknowledgements(owls: Owls) -> None:
    """On a connection that is kept, the head and the body of a reply follow each other at once."""
    with owls.client() as client:
        seconds = [client.get("/health").elapsed.total_seconds() for _ in range(20)]
    assert min(seconds[1:]) < 0.03  # a delayed acknowledgement takes 0.04


def test_tokenize(owls: Owls) -> None:
    engine = nano()
    with owls.client() as client:
        reply = client.post("/tokenize", json={"prompt": "AI: </s>"}).json()
        assert reply["max_model_len"] == engine.max_context
        assert reply["tokens"][0] == engine.tokenizer.bos_id
        assert reply["tokens"][-1] == engine.tokenizer.eos_id  # the written-out door
        assert reply["count"] == len(reply["tokens"])
        asked = client.post("/tokenize", json={"messages": seen(), "model": MODEL}).json()
        answered = client.post("/v1/chat/completions", json={"messages": seen(), **FIXED}).json()
        assert asked["count"] == answered["usage"]["prompt_tokens"]
        assert asked["tokens"].count(IMAGE_ID) == engine.config.image_rows
        assert client.post("/tokenize", json={"prompt": "x", "model": "none"}).status_code == 404
        assert client.post("/tokenize", json={}).status_code == 400
        many = client.post("/tokenize", json={"prompt": "<image>" * 5})
        assert (many.status_code, many.json()["error"]["code"]) == (400, "too_many_images")


def test_the_page(owls: Owls, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>hello")
    (tmp_path / "style.css").write_text("p {}")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/a.js").write_text("1")
    assert {path: file.name for path, file in page_files(tmp_path).items()} == {
        "/": "index.html",
        "/style.css": "style.css",
        "/parts/a.js": "a.js",
    }
    app = make_app(Service(), page=tmp_path)
    assert {("GET", "/"), ("GET", "/style.css"), ("GET", "/parts/a.js")} <= routes(app)
    with owls.client() as client:
        for path, file in page_files().items():
            reply = client.get(path)
            assert reply.status_code == 200
            assert reply.content == file.read_bytes()


def test_unknown_fields_are_named_in_the_log(owls: Owls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    extra = {"store": True, "a prompt\nforged": 1, **{f"x{n}": 1 for n in range(20)}}
    with owls.client() as client:
        body = {"messages": asking("x"), **FIXED, **extra}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    (line,) = [record.getMessage() for record in caplog.records if "unknown" in record.getMessage()]
    assert line == "22 unknown field(s) ignored: store, x0, x1, x2, x3, x4, x5, x6"


def test_who_leaves_before_the_reply_is_no_error(owls: Owls, caplog: pytest.LogCaptureFixture) -> None:
    owls.idle()
    caplog.set_level(logging.INFO)
    asked = {"messages": asking("x"), **FIXED, "max_tokens": 1500, "ignore_eos": True}
    with owls.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=asked, timeout=0.2)
    owls.idle()
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("owl_fast")]
    assert line.startswith("POST /v1/chat/completions 499, ")
    assert line.endswith(" s, gone")


def test_one_line_for_a_request(owls: Owls, caplog: pytest.LogCaptureFixture) -> None:
    owls.idle()  # what was asked before has had its line
    caplog.set_level(logging.INFO)
    with owls.client() as client:
        client.post("/v1/chat/completions", json={"messages": seen("CANARY"), **FIXED})
        owls.idle()  # a reply is there before its line
        client.post("/v1/chat/completions", json={"messages": asking("CANARY"), "model": "CANARY"})
        owls.idle()
        client.post("/v1/CANARY", json={})
        client.get("/health")
    owls.idle()
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("owl_fast")]
    assert len(lines) == 3
    assert lines[0].startswith("POST /v1/chat/completions 200, ")
    assert "answered" in lines[0]
    assert " tokens, first after " in lines[0]
    assert lines[1].startswith("POST /v1/chat/completions 404, ")
    assert lines[1].endswith(" s, model_not_found model")
    assert lines[2].startswith("POST (no such path) 404, ")
    assert not any("CANARY" in line or data_uri()[50:80] in line for line in lines)


def test_its_own_description(owls: Owls) -> None:
    with owls.client() as client:
        document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {path for _, path in ROUTES} - {"/metrics"}
    known = document["components"]["schemas"]
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(known)
    assert known["ChatRequest"]["properties"]["temperature"]["anyOf"][0]["maximum"] == 2


def hostile(number: int) -> tuple[str, dict[str, object]]:
    """A request that wants to be in the log."""
    secret = f"CANARY{number}\r\n2026 INFO POST /forged 200"
    return [
        ("/v1/chat/completions", {"messages": asking(secret), **FIXED, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": asking(secret, f"data:image/png;base64,{secret}"), **FIXED}),
        ("/v1/chat/completions", {"messages": asking("x"), "model": secret}),
        ("/v1/chat/completions", {"messages": [{"role": secret, "content": secret}], "model": MODEL}),
        ("/v1/chat/completions", {"messages": asking("x"), **FIXED, "logit_bias": {secret: secret}}),
        ("/v1/completions", {"prompt": secret, **FIXED, "max_tokens": 1, secret: secret}),
        ("/v1/completions", {"prompt": secret + "<image>", **FIXED}),
        ("/tokenize", {"prompt": secret, "model": secret}),
        (f"/v1/CANARY{number}%0d%0aforged", {}),
        ("/v1/chat/completions", {"messages": asking(secret * 500), **FIXED, "user": secret}),
    ][number % 10]


def hygiene(owls: Owls, caplog: pytest.LogCaptureFixture, count: int) -> None:
    owls.idle()
    caplog.set_level(logging.DEBUG)
    with owls.client() as client:
        for number in range(count):
            path, body = hostile(number)
            headers = {"authorization": "Bearer CANARYKEY", "x-note": "CANARY"}
            reply = client.post(path, json=body, headers=headers)
            assert reply.status_code < 500
            assert reply.status_code == 200 or len(reply.content) <= 1024
            assert reply.status_code == 200 or "CANARY" not in reply.text
    lines = [record for record in caplog.records if record.name.startswith(("owl_fast", "uvicorn"))]
    texts = [record.getMessage() for record in lines]
    assert len([text for text in texts if text.startswith("POST ")]) == count
    assert not any("CANARY" in text or "\n" in text or "forged" in text for text in texts)
    assert sum(map(len, texts)) <= 1 << 20
    owls.idle()


def test_the_log_tells_nothing(owls: Owls, caplog: pytest.LogCaptureFixture) -> None:
    hygiene(owls, caplog, 50)
    owls.fixed_answer()


@pytest.mark.slow
def test_the_log_tells_nothing_for_long(owls: Owls, caplog: pytest.LogCaptureFixture) -> None:
    before = owls.fixed_answer()
    hygiene(owls, caplog, 1000)
    assert owls.fixed_answer() == before
