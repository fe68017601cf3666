"""The chat against a server: the request it sends, and streams good and bad."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from owl_fast import chat
from owl_fast.chat.remote import MAX_CHARACTERS, RemoteBackend
from owl_fast.chat.server import Server, ServerError
from owl_fast.chat.session import Session
from owl_fast.engine.outputs import Output
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import ParameterError, UnsupportedError
from tests.chat.fake_server import DROP, USAGE, FakeServer, answer, chunk
from tests.chat.fakes import FakeScreen, clip
from tests.golden_data import image_files


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().running() as running:
        yield running


def ask(
    server: FakeServer,
    *scripts: Any,
    params: SamplingParams | None = None,
    screen: FakeScreen | None = None,
) -> tuple[Output, FakeScreen]:
    server.scripts.extend(scripts)
    screen = screen or FakeScreen()
    session = Session(RemoteBackend(Server(server.url), "owl"), params or SamplingParams(), screen)
    return session.ask("hello"), screen


# --- a good server ---


def test_an_answer_with_its_counts(server: FakeServer) -> None:
    output, screen = ask(server, answer("It is ¿猫?"))
    assert (output.text, output.finish_reason) == ("It is ¿猫?", "stop")
    assert output.usage.total_tokens == 23
    assert screen.notes[0].startswith("3 tok · ")
    assert screen.notes[0].endswith("context 23 · stop")


def test_what_is_sent(server: FakeServer) -> None:
    ask(server, answer("yes"))
    assert server.requests[0] == {
        "model": "owl",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    }
    params = SamplingParams(
        temperature=0.5, top_k=3, no_repeat_ngram=2, max_tokens=9, seed=1, stop=("a", "b")
    )
    ask(server, answer("yes"), params=params)
    sent = server.requests[1]
    assert (sent["temperature"], sent["top_k"], sent["no_repeat_ngram_size"]) == (0.5, 3, 2)
    assert (sent["max_tokens"], sent["seed"], sent["stop"]) == (9, 1, ["a", "b"])
    assert "min_p" not in sent


def test_pictures_travel_inside_and_an_answer_can_go_on(server: FakeServer) -> None:
    server.scripts.extend([answer("A cat", "length"), answer(" that sleeps.")])
    session = Session(RemoteBackend(Server(server.url), "owl"), SamplingParams(), FakeScreen())
    picture = image_files()[0]
    session.conversation.set_system("Be brief.")
    from owl_fast.chat.pictures import open_picture

    session.queue = [open_picture(str(picture))]
    session.ask("What?")
    session.go_on()
    head, question = server.requests[0]["messages"]
    assert head == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in question["content"]] == ["image_url", "text"]
    assert question["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "continue_final_message" not in server.requests[0]
    assert server.requests[1]["messages"][-1] == {"role": "assistant", "content": "A cat"}
    assert server.requests[1]["continue_final_message"] is True
    assert session.conversation.messages[-1]["content"] == "A cat that sleeps."


def test_a_video_travels_as_pictures(server: FakeServer, tmp_path: Path) -> None:
    question = {"type": "video", "video": str(clip(tmp_path / "clip.gif")), "num_frames": 3}
    server.scripts.append(answer("A clip."))
    messages = [{"role": "user", "content": [question, {"type": "text", "text": "What?"}]}]
    with RemoteBackend(Server(server.url), "owl").reply(messages, SamplingParams(), None) as reply:
        assert "".join(event.text for event in reply) == "A clip."
    sent = server.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in sent] == ["image_url"] * 3 + ["text"]
    assert len({part["image_url"]["url"] for part in sent[:3]}) == 3


def test_a_server_that_counts_nothing_and_says_no_reason(server: FakeServer) -> None:
    output, screen = ask(server, [b": hello\n\n", chunk("yes"), b"data: [DONE]\n\n"])
    assert (output.text, output.finish_reason) == ("yes", "stop")
    assert screen.notes[0].startswith("first token ")


def test_lines_may_be_cut_anywhere(server: FakeServer) -> None:
    stream = b'data: {"choices":[{"delta":{"content":"\xe7\x8c\xab!"},"finish_reason":"stop"}]}\r\n\r\n'
    output, _ = ask(server, [stream[i : i + 1] for i in range(len(stream))])
    assert output.text == "猫!"


def test_the_first_model_is_taken_and_the_key_is_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("secret-of-sixteen\n")
    server.scripts.extend([answer("yes"), answer("yes")])
    monkeypatch.setenv("OWL_API_KEY", "from-the-environment")
    assert chat.main(["--url", server.url, "-p", "hello", "-v"]) == 0
    assert chat.main(["--url", server.url, "-p", "hello", "--api-key-file", str(key)]) == 0
    out, err = capfd.readouterr()
    assert out == "yes\nyes\n"
    assert f"ready: served-owl at {server.url}" in err
    assert server.requests[0]["model"] == "served-owl"
    sent = [headers["Authorization"] for headers in server.headers]
    assert sent == ["Bearer from-the-environment"] * 2 + ["Bearer secret-of-sixteen"] * 2


# --- errors ---


def test_an_address_without_its_path_gets_a_hint(server: FakeServer) -> None:
    root = server.url.removesuffix("/v1")
    server.models = (404, {"error": {"message": "there is nothing at this path"}})
    with pytest.raises(ServerError, match=rf"says 404: .*; did you mean {root}/v1\?"):
        RemoteBackend(Server(f"{root}/"), None)
    with pytest.raises(ServerError, match=r"says 404: [^;]*$"):
        RemoteBackend(Server(f"{root}/v2"), None)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ((400, {"error": {"message": "too long: 3000 of 2048", "type": "x"}}), "says 400: too long: 3000 of"),
        ((401, {"error": "no key"}), "says 401: no key"),
        ((404, b"<html>not here</html>"), "says 404: Not Found"),
        ((503, b"loading\nplease wait"), "says 503: loading"),
        ((200, {"object": "chat.completion"}), "no event stream"),
        ((307, b""), "says 307"),
        ([DROP], "broke off"),
        ([b"data: {oops\n\n"], "no JSON object"),
        ([{"error": {"message": "out of memory"}}], "says: out of memory"),
        ([b"0\r\n\r\n"], "broke off"),
    ],
    ids=str,
)
def test_a_server_that_fails_says_why(server: FakeServer, script: Any, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        ask(server, script)


@pytest.mark.parametrize("end", [DROP, {"error": {"message": "out of memory"}}], ids=["drop", "error"])
def test_a_stream_that_breaks_off_keeps_what_came(server: FakeServer, end: Any) -> None:
    output, screen = ask(server, [chunk("Once "), chunk("upon"), end])
    assert (output.text, output.finish_reason) == ("Once upon", "error")
    assert "what was said is kept" in screen.errors[0]


def test_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, but it never listens
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert chat.main(["--url", url, "-p", "hello"]) == 1
    assert f"{url} cannot be reached" in capfd.readouterr().err


@pytest.mark.parametrize("models", [{"data": []}, {"data": [{}]}, [], (200, b"<html>"), (404, b"")], ids=str)
def test_a_server_that_lists_no_model(server: FakeServer, models: Any) -> None:
    server.models = models
    with pytest.raises(ServerError):
        RemoteBackend(Server(server.url), None)
    assert RemoteBackend(Server(server.url), "owl").name == "owl"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://a/v1",
        "file:///etc/passwd",
        "http://",
        "http://a:b:c",
        "http://a/v1?x=1",
        "http://user:pass@a/v1",
        "http://a/v 1",
        "http://a/\nHost: b",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ParameterError):
        Server(url)


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX: y", "schlüssel"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ParameterError):
        Server("http://a/v1", key)


def test_what_only_a_model_in_this_process_can_do(server: FakeServer) -> None:
    backend = RemoteBackend(Server(server.url), None)
    assert backend.show("model", []) == [("name", "served-owl"), ("server", server.url)]
    for call in (
        lambda: backend.check(SamplingParams(beams=2)),
        lambda: backend.show("memory", []),
        lambda: backend.count_tokens([]),
        lambda: backend.load_adapter("a", "b"),
    ):
        with pytest.raises(UnsupportedError):
            call()


@pytest.mark.parametrize(
    "flags",
    [["--device", "cpu"], ["--adapter", "a"], ["--config", "c.json"], ["--vision-heads", "8"]],
    ids=str,
)
def test_flags_about_loading_mean_nothing_to_a_server(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        chat.main(["--url", "http://127.0.0.1:1/v1", "-p", "hello", *flags])
    assert leaving.value.code == 2


# --- without end ---


def endless(part: Any) -> Iterator[Any]:
    while True:
        yield part


def test_an_answer_without_end_is_given_up(server: FakeServer) -> None:
    output, screen = ask(server, endless(chunk("upon " * 5000)))
    assert output.finish_reason == "error"
    assert MAX_CHARACTERS - 25_000 <= len(output.text) <= MAX_CHARACTERS
    assert "the server's answer has no end: more than 1048576 characters came" in screen.errors[0]
    assert server.gone.wait(60)


@pytest.mark.parametrize(
    "part",
    [
        b"data: " + b"x" * 65536,  # one line
        b"data: " + b"x" * 65536 + b"\n",  # one event
        b": still here" + b"!" * 65536 + b"\n\n",
        b"data: {}" + b" " * 65536 + b"\n\n",
    ],
    ids=["line", "event", "comments", "events that say nothing"],
)
def test_a_stream_without_end_is_given_up(
    part: bytes, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_fast.chat.server.MAX_STREAM_BYTES", 8 << 20)
    with pytest.raises(ServerError, match=r"sends without end; given up after \d+ bytes"):
        ask(server, endless(part))
    assert server.gone.wait(60)


DEEP = b"[" * 100_000


def test_what_is_nested_without_end(server: FakeServer) -> None:
    with pytest.raises(ServerError, match="no JSON object"):
        ask(server, [b"data: " + DEEP + b"\n\n"])
    with pytest.raises(ServerError, match="says 500"):
        ask(server, (500, DEEP))
    server.models = (200, DEEP)
    with pytest.raises(ServerError, match="is no JSON"):
        Server(server.url).get("/models")


@contextmanager
def dribbling(begin: bytes) -> Iterator[tuple[str, threading.Event]]:
    """A server that says this, and then a letter every 20 ms; its address, and what is set meanwhile."""
    over, under_way = threading.Event(), threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(begin)
            while not over.wait(0.02):
                connection.sendall(b"x")
                under_way.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", under_way
        finally:
            over.set()
            thread.join()


OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\n\r\n"


def press_ctrl_c(under_way: threading.Event, pressed: list[float]) -> None:
    under_way.wait(60)
    time.sleep(0.1)
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("begin", [b"", OK, OK + b"X: ", STREAM, STREAM + b"data: "], ids=repr)
def test_ctrl_c_while_a_server_dribbles(begin: bytes) -> None:
    pressed: list[float] = []
    with dribbling(begin) as (url, under_way):
        thread = threading.Thread(target=press_ctrl_c, args=(under_way, pressed))
        thread.start()
        session = Session(RemoteBackend(Server(url), "owl"), SamplingParams(), FakeScreen())
        with pytest.raises(KeyboardInterrupt):
            session.ask("hello")
        assert time.monotonic() - pressed[0] < 1
        thread.join()


@pytest.mark.parametrize("begin", [b"", OK, OK + b"\r\n"], ids=repr)
def test_ctrl_c_while_a_list_of_models_dribbles(begin: bytes) -> None:
    pressed: list[float] = []
    with dribbling(begin) as (url, under_way):
        thread = threading.Thread(target=press_ctrl_c, args=(under_way, pressed))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            Server(url).get("/models")
        assert time.monotonic() - pressed[0] < 1
        thread.join()


def test_another_thread_ends_a_dribble() -> None:
    """As when a judge is stopped."""
    message = {"role": "user", "content": "hello"}
    with dribbling(STREAM) as (url, under_way):
        with RemoteBackend(Server(url), "owl").reply([message], SamplingParams(), None) as reply:
            thread = threading.Thread(target=lambda: list(reply))
            thread.start()
            assert under_way.wait(60)
            reply.cancel()
            thread.join(1)
            assert not thread.is_alive()
        assert reply.output.finish_reason == "cancelled"


def test_nothing_of_what_came_is_read_once_it_is_cancelled(server: FakeServer) -> None:
    server.scripts.append([chunk("word ")] * 10_000)
    message = {"role": "user", "content": "hello"}
    with RemoteBackend(Server(server.url), "owl").reply([message], SamplingParams(), None) as reply:
        events = iter(reply)
        next(events)
        reply.cancel()
        assert list(events) == []
    assert (reply.output.text, reply.output.finish_reason) == ("word ", "cancelled")


# --- Ctrl-C ---


def test_ctrl_c_stops_a_server_that_has_fallen_silent(server: FakeServer) -> None:
    release, screen = threading.Event(), FakeScreen()

    def script() -> Iterator[Any]:
        yield chunk("Once ")
        while screen.answers[-1] != "Once ":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(60)
        while True:  # until the client is seen to have left
            yield chunk("upon ")

    output, _ = ask(server, script(), screen=screen)
    assert (output.text, output.finish_reason) == ("Once ", "cancelled")
    assert screen.notes[-1].endswith("cancelled")
    release.set()
    assert server.gone.wait(60)


def test_usage_of_a_picture(server: FakeServer) -> None:
    usage = {**USAGE["usage"], "prompt_tokens_details": {"image_tokens": 9}}  # type: ignore[dict-item]
    end = {"choices": [], "usage": usage, "timings": {"image_ms": 7.2}}
    output, screen = ask(server, [chunk("yes", "stop"), end, b"data: [DONE]\n\n"])
    assert (output.usage.image_tokens, output.timings.image_ms) == (9, 7)
    assert "(image 7 ms)" in screen.notes[0]
