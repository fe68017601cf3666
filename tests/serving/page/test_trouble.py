"""What the page says when something goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chat.fake_server import DROP, answer, chunk
from tests.serving.page_server import PageServer

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page


def test_the_server_s_refusal_word_for_word(page: Page, server: PageServer) -> None:
    message = "the model gave numbers that are none,\nnot an answer"
    server.scripts.append((500, {"error": {"message": message}}))
    page.ask("What colour?")
    page.until(lambda: page.texts(".trouble p") == [message])
    assert page.one(".trouble").aria_role == "alert"
    page.click("Retry")
    page.until(lambda: page.answers() == ["It is red."])
    assert page.all(".trouble") == []
    server.scripts.append((503, b"<html>proxy</html>"))
    page.ask("More?")
    page.until(lambda: page.texts(".trouble p") == ["The server answered 503 and gave no reason."])
    page.click("Take back")
    assert page.composer.get_property("value") == "More?"
    assert page.texts(".user .text") == ["What colour?"]


def test_what_does_not_fit_is_not_tried_again(page: Page, server: PageServer) -> None:
    error = {"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}}
    server.scripts += [(400, error), [chunk("It is "), error]]
    page.ask("What colour?")
    page.until(lambda: page.texts(".trouble button") == ["New conversation", "Take back"])
    page.click("Take back", ".trouble")
    page.composer.send_keys(Keys.ENTER)
    page.until(lambda: page.texts(".trouble button") == ["New conversation"])
    page.click("New conversation", ".trouble")
    page.until(lambda: page.one("#welcome").is_displayed())
    assert page.all(".trouble") == []


def test_a_model_that_is_still_loading(page: Page, server: PageServer) -> None:
    page.ask_and_wait("What colour?")
    models, server.models = server.models, (503, {"error": {"message": "the model is loading"}})
    page.driver.refresh()
    page.until(lambda: page.texts(".trouble p") == ["the model is loading"])
    assert page.texts(".trouble small") == ["Trying again …"]
    page.click("Retry")
    assert page.answers() == ["It is red."]
    page.ask("Sure?")
    page.until(lambda: page.text("#notice") == "The server has not said yet which model it has.")
    server.models = models
    page.ready()
    assert page.text("#notice") == ""
    assert page.composer.get_property("value") == "Sure?"


def test_a_full_server_says_how_long_to_wait(page: Page, server: PageServer) -> None:
    server.scripts.append((429, {"error": {"message": "too many requests are waiting; try again later"}}))
    page.ask("What colour?")
    page.until(lambda: page.texts(".trouble p") == ["too many requests are waiting; try again later"])
    assert page.texts(".trouble small") == ["The server asks to wait 7 s."]


def test_an_error_in_the_middle_keeps_what_came(page: Page, server: PageServer) -> None:
    server.scripts.append([chunk("It is "), {"error": {"message": "the model gave numbers that are none"}}])
    page.ask("What colour?")
    page.until(lambda: page.texts(".trouble p") == ["the model gave numbers that are none"])
    assert page.answers() == ["It is "]
    go = threading.Event()

    def broken() -> Iterator[Any]:
        yield chunk("bright ")
        assert go.wait(20)
        yield DROP

    server.scripts.append(broken())
    page.click("Continue", ".trouble")
    page.until(lambda: page.answers() == ["It is bright "])
    go.set()
    page.until(lambda: page.texts(".trouble p") == ["The connection broke off in the middle of the answer."])
    assert page.answers() == ["It is bright "]
    server.scripts.append(answer("red."))
    page.click("Continue", ".trouble")
    page.until(lambda: page.answers() == ["It is bright red."])


def test_a_network_that_fails(page: Page, server: PageServer) -> None:
    def offline(off: bool) -> None:
        page.driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": off, **conditions})

    try:
        offline(True)
        page.ask("What colour?")
        page.until(lambda: page.text(".trouble p").startswith("The server cannot be reached."))
    finally:
        offline(False)
    page.click("Retry")
    page.until(lambda: page.answers() == ["It is red."])


def test_an_api_key_is_asked_for_and_stays_in_the_tab(page: Page, server: PageServer) -> None:
    server.key = "sixteen-letters-x"
    page.driver.refresh()
    page.until(lambda: page.all("#key-dialog[open]"))
    page.click("Cancel", "#key-dialog")
    page.until(lambda: page.texts(".trouble p") == ["This server asks for an API key."])
    page.click("Enter the API key")
    for key, said in (("wrong", []), (server.key, ["This key was not accepted."])):
        page.until(lambda: page.all("#key-dialog[open]") and page.active.accessible_name == "API key")
        assert page.texts("#key-refused") == said
        page.active.send_keys(key, Keys.ENTER)
        page.until(lambda key=key: page.run("return sessionStorage.getItem('owl-api-key')") == key)
    page.ready().ask_and_wait("?")
    assert server.headers[-1]["Authorization"] == f"Bearer {server.key}"
    assert server.key not in page.run("return JSON.stringify(localStorage) + document.cookie")
    page.click("Settings")
    page.click("Forget the API key")
    assert page.run("return sessionStorage.getItem('owl-api-key')") is None
