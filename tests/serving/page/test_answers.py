"""A question to the page, and its answer."""

from __future__ import annotations

import json
import re
import threading

import pytest

from tests.chat.fake_server import answer, chunk
from tests.serving.page.content import HOSTILE, STATISTICS
from tests.serving.page_server import END, PAGE, PageServer, until

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page


def test_an_answer_appears_while_it_is_made(page: Page, server: PageServer) -> None:
    go = threading.Event()
    server.scripts.append(until(go, "The star ", "is red."))
    page.ask("What colour?")
    page.until(lambda: page.answers() == ["The star "])
    page.until(lambda: re.fullmatch(r"1 tok · first token \d+ ms", page.text(".assistant .note")))
    assert page.busy
    assert server.requests == [
        {
            "model": "served-owl",
            "messages": [{"role": "user", "content": "What colour?"}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    go.set()
    page.until(lambda: not page.busy)
    assert page.answers() == ["The star is red."]
    assert page.ask_and_wait("And again?") == "It is red."
    assert re.fullmatch(STATISTICS, page.texts(".note")[-1])
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["user", "assistant", "user"]


def test_the_server_s_own_numbers_are_shown(page: Page, server: PageServer) -> None:
    server.models["data"][0]["max_model_len"] = 2048
    page.reload()
    times = {"predicted_per_second": 96.44, "image_ms": 21.2}
    usage = {"prompt_tokens": 200, "completion_tokens": 84}
    server.scripts.append(
        [chunk("a"), chunk("", "length"), {"choices": [], "usage": usage, "timings": times}, END]
    )
    page.ask_and_wait("?")
    first, others = r"84 tok · 96.4 tok/s · first token \d+ ms", " · picture 21 ms · context 284/2048"
    said = f"{first}{others} · cut at the length limit"
    assert re.fullmatch(said, page.text(".assistant .note"))


def test_shift_enter_is_a_new_line_and_nothing_is_not_sent(page: Page, server: PageServer) -> None:
    page.ask("  ")
    page.composer.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two", Keys.ENTER)
    page.until(lambda: page.answers() == ["It is red."])
    assert [request["messages"][0]["content"] for request in server.requests] == ["one\ntwo"]


def test_characters_may_be_cut_anywhere(page: Page, server: PageServer) -> None:
    text = "naïve 猫 \U0001f989!"
    stream = b"".join(
        b"data: " + json.dumps(c, ensure_ascii=False).encode() + b"\r\n\r\n" for c in answer(text)[:-1]
    )
    server.scripts.append([b": hello\n\n", *(bytes([byte]) for byte in stream), END])
    assert page.ask_and_wait("?") == text


def test_nothing_anybody_says_becomes_markup(page: Page, server: PageServer) -> None:
    server.models["data"] = [{"id": HOSTILE}, {"id": "other"}]
    page.reload()
    server.scripts.append(answer(HOSTILE))
    assert page.ask_and_wait(HOSTILE) == HOSTILE
    server.scripts.append((400, {"error": {"message": HOSTILE}}))
    page.ask("again")
    page.until(lambda: page.texts(".trouble p") == [HOSTILE])
    assert page.texts(".user .text") == [HOSTILE, "again"]
    assert page.all("main img[src=x], main a, main b:not(#example b), main script") == []
    assert page.run("return window.hacked") is None
    code = "".join(path.read_text() for path in PAGE.glob("*.js"))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|DOMParser|document\.write|eval\(|\bFunction\(", code
    )
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", code + (PAGE / "index.html").read_text())
