"""The web page in a headless Chromium: what people do with it, and what it must never do."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl_fast.conversation import Conversation, load_messages, user_message
from tests.chat.fake_server import DROP, USAGE, answer, chunk
from tests.serving.page_server import END, PAGE, PageServer, endless, until

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.serving.page_driver import Page, find_browser, open_browser

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium with its driver (Debian: apt install chromium chromium-driver)",
)
EXAMPLES = Path(__file__).parents[2] / "examples"
SCENE, SIGN, TWO = (EXAMPLES / name for name in ("scene.png", "sign.png", "two.png"))
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> & **bold** [a](javascript:1)'
STATISTICS = r"3 tok( · [\d.]+ tok/s)? · first token \d+ ms · context 23"


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with PageServer(default=lambda _: iter(answer("It is red."))).running() as running:
        assert isinstance(running, PageServer)
        yield running


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Any]:
    with open_browser(downloads) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, server: PageServer) -> Iterator[Page]:
    """Nobody has used it. Whatever a test does, nothing leaves the origin or breaks the policy."""
    server.reset()
    page = Page(browser, server.origin)
    yield page.open()
    page.forget()
    assert page.complaints() == []
    assert page.strangers() == []


def uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def shown(*paths: Path, text: str) -> list[dict[str, Any]]:
    """Content of a message with pictures, as it is sent."""
    parts = [{"type": "image_url", "image_url": {"url": uri(path)}} for path in paths]
    return [*parts, {"type": "text", "text": text}]


def sent_pictures(server: PageServer) -> list[Image.Image]:
    parts = server.requests[-1]["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


# --- a question and its answer ------------------------------------------------------------------------------


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


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures_are_chosen_pasted_and_dropped(page: Page, server: PageServer) -> None:
    page.choose(SCENE)
    page.thumbs(1)
    assert page.give("paste", [SIGN], "some words") == [True]  # the text still goes where the cursor is
    page.thumbs(2)
    assert page.give("drop", [TWO], to=page.one("header")) == [True, False, False]
    page.thumbs(3)
    page.click("Remove sign.png")
    page.thumbs(2)
    page.ask_and_wait("What is it?")
    assert server.requests[0]["messages"] == [
        {"role": "user", "content": shown(SCENE, TWO, text="What is it?")}
    ]
    assert page.all("footer .thumbs img") == []
    assert len(page.all(".user .pictures img")) == 2


def test_a_picture_needs_no_words_and_four_are_the_most(page: Page, server: PageServer) -> None:
    page.choose(SCENE, SIGN, TWO, SCENE, SIGN)
    page.until(lambda: page.text("#notice span") == "4 pictures a message at most; sign.png was left out.")
    page.thumbs(4)
    page.ask_and_wait("")
    assert [p.size for p in sent_pictures(server)] == [(224, 224)] * 4


def test_pasting_outside_the_field_works_too(page: Page, server: PageServer) -> None:
    assert page.give("paste", [SCENE], "What is it?", to=page.one("main")) == [False]
    page.thumbs(1)
    assert page.composer.get_property("value") == "What is it?"


def test_a_picture_too_large_is_made_smaller(page: Page, server: PageServer, tmp_path: Path) -> None:
    """By its side, by its pixels, and by its bytes alone: as a BMP it has 8.6 MiB."""
    wanted = [(8192, 27), (4472, 3577), (2000, 1500)]
    for size, name in (((9000, 30), "long.png"), ((5000, 4000), "large.png"), ((2000, 1500), "heavy.bmp")):
        Image.new("RGB", size, "red").save(tmp_path / name)
        page.choose(tmp_path / name)
        page.until(lambda name=name: page.text("#notice span").startswith(name))
        width, height = wanted[len(page.all("footer .thumbs img")) - 1]
        assert f"{width} × {height}" in page.text("#notice span")
    page.ask_and_wait("?")
    assert [(picture.size, picture.format) for picture in sent_pictures(server)] == [
        (s, "JPEG") for s in wanted
    ]


@pytest.mark.slow
def test_pictures_of_a_conversation_fit_into_one_request(
    page: Page, server: PageServer, tmp_path: Path
) -> None:
    """Four of 7 MiB would be 37 MiB of body; the server takes 20."""
    path = tmp_path / "noise.bmp"
    Image.effect_noise((1560, 1500), 90).convert("RGB").save(path)
    assert 6 << 20 < path.stat().st_size < 8 << 20
    page.choose(path, path, path, path)
    page.thumbs(4)
    page.ask_and_wait("?")
    assert len(sent_pictures(server)) == 4
    assert len(json.dumps(server.requests[-1])) < 20 << 20


def test_what_is_no_picture_is_said(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    page.choose(path)
    page.until(lambda: page.text("#notice span") == "notes.png: this browser finds no picture in it.")


def test_the_example(page: Page, server: PageServer) -> None:
    page.one("#example").click()
    page.thumbs(1)
    page.active.send_keys(Keys.ENTER)
    page.until(lambda: page.answers() == ["It is red."])
    assert server.requests[0]["messages"][0]["content"] == shown(SCENE, text="What color is the star?")


# --- stop, continue, retry, edit ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["button", "Esc"])
def test_stop_keeps_what_came_and_continue_goes_on(how: str, page: Page, server: PageServer) -> None:
    server.scripts.append(endless("The star "))
    page.ask("What colour?")
    page.until(lambda: page.answers() == ["The star "])
    page.press(Keys.ESCAPE) if how == "Esc" else page.click("Stop")
    page.until(lambda: not page.busy)
    assert server.gone.wait(10)
    assert page.text(".assistant .note").endswith("stopped")
    server.scripts.append(answer("is red."))
    page.click("Continue")
    page.until(lambda: page.answers() == ["The star is red."])
    request = server.requests[-1]
    assert request["messages"][1:] == [{"role": "assistant", "content": "The star "}]
    assert (request["continue_final_message"], request["add_generation_prompt"]) == (True, False)


def test_stopped_before_the_first_word(page: Page, server: PageServer) -> None:
    server.scripts.append(endless(""))
    page.ask("What colour?")
    page.until(lambda: page.text(".assistant .note").startswith("reading · "))
    page.press(Keys.ESCAPE)
    page.until(lambda: page.text(".quiet p") == "This message has no answer yet.")
    assert page.all(".assistant") == []
    page.click("Ask again")
    page.until(lambda: page.answers() == ["It is red."])
    assert len(server.requests[-1]["messages"]) == 1


def test_retry_and_its_undo(page: Page, server: PageServer) -> None:
    page.ask_and_wait("What colour?")
    server.scripts.append(answer("Crimson."))
    page.click("Retry")
    page.until(lambda: page.answers() == ["Crimson."] and not page.busy)
    assert server.requests[1] == server.requests[0]
    page.click("Undo")
    page.until(lambda: page.answers() == ["It is red."])
    assert page.text("#notice") == ""


def test_undo_brings_back_what_was_replaced_last(page: Page, server: PageServer) -> None:
    page.ask_and_wait("What colour?")
    for text in ("Crimson.", "Blue."):
        server.scripts.append(answer(text))
    page.click("Retry")
    page.until(lambda: page.answers() == ["Crimson."] and not page.busy)
    page.click("Edit", ".user")
    page.active.send_keys(" Sky?")
    page.click("Ask again")
    page.until(lambda: page.answers() == ["Blue."] and not page.busy)
    assert page.text("#notice > span") == "The earlier answer was replaced."
    page.click("Undo")
    page.until(lambda: page.texts(".message .text") == ["What colour?", "Crimson."])
    page.click("Edit", ".assistant")
    page.active.send_keys(" Or so.")
    page.click("Change")
    assert page.answers() == ["Crimson. Or so."]
    page.click("Undo")
    page.until(lambda: page.answers() == ["Crimson."])


def test_undo_goes_with_the_next_step(page: Page, server: PageServer) -> None:
    page.ask_and_wait("What colour?")
    server.scripts.append(answer("Crimson"))
    page.click("Retry")
    page.until(lambda: page.answers() == ["Crimson"] and not page.busy)
    page.click("Continue")
    page.until(lambda: page.answers() == ["CrimsonIt is red."] and not page.busy)
    assert page.text("#notice") == ""
    page.click("Retry")
    page.until(lambda: page.answers() == ["It is red."] and not page.busy)
    page.click("Settings")
    fill(page, "system", "Be brief.")
    page.click("Done")
    page.click("Undo")
    page.until(lambda: page.all(".system") == [])
    assert page.answers() == ["It is red."]


def test_an_answer_that_failed_to_be_replaced_is_not_lost(page: Page, server: PageServer) -> None:
    page.ask_and_wait("What colour?")
    server.scripts += [(503, {"error": {"message": "busy"}})] * 2 + [answer("Crimson.")]
    page.click("Retry")
    page.until(lambda: page.texts(".trouble p") == ["busy"])
    page.click("Retry")
    page.until(lambda: len(server.requests) == 3 and page.texts(".trouble p") == ["busy"])
    page.click("Retry")
    page.until(lambda: page.answers() == ["Crimson."] and not page.busy)
    page.click("Undo")
    page.until(lambda: page.answers() == ["It is red."])


def test_a_question_is_edited_and_asked_again(page: Page, server: PageServer) -> None:
    page.choose(SCENE, SIGN)
    page.thumbs(2)
    page.ask_and_wait("What colour?")
    page.ask_and_wait("Sure?")
    page.click("Edit", ".message:first-child")
    page.click("Remove picture 1")
    page.active.send_keys(Keys.HOME, "Please: ", Keys.ENTER)
    page.until(lambda: len(page.answers()) == 1 and not page.busy)
    assert server.requests[-1]["messages"] == [
        {"role": "user", "content": shown(SIGN, text="Please: What colour?")}
    ]
    page.click("Undo")
    page.until(lambda: len(page.answers()) == 2)


def test_messages_are_changed_in_place(page: Page, server: PageServer) -> None:
    page.ask_and_wait("What colour?")
    page.click("Edit", ".assistant")
    page.active.send_keys(Keys.END, "\nVery red.  ")
    page.click("Change")
    page.click("Edit", ".user")
    page.active.send_keys(" It?")
    page.click("Only change")
    page.click("Edit", ".user")
    page.active.send_keys("not this", Keys.ESCAPE)
    assert page.active.accessible_name == "Edit"
    assert len(server.requests) == 1
    page.ask_and_wait("Sure?")
    assert [message["content"] for message in server.requests[1]["messages"]] == [
        "What colour? It?",
        "It is red.\nVery red.  ",
        "Sure?",
    ]


def test_copy(page: Page, server: PageServer) -> None:
    text = "<b>one</b>\n\n" + "two " * 2000 + "\nthree"
    server.scripts.append([chunk(text), chunk("", "stop"), END])
    page.ask_and_wait("?")
    page.click("Copy", ".assistant")
    page.until(lambda: "Copied" in page.texts(".assistant .tools span"))
    page.composer.click()
    page.press(Keys.CONTROL, "v")
    page.until(lambda: page.composer.get_property("value") == text)


# --- settings and looks -------------------------------------------------------------------------------------


def fill(page: Page, name: str, *values: object) -> None:
    """The field of this name and those behind it, which Tab selects."""
    field = page.one(f"#setting-{name}")
    field.clear()
    field.send_keys("".join(f"{value}{Keys.TAB}" for value in values))


def test_settings_are_sent_and_kept(page: Page, server: PageServer) -> None:
    values = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "max_tokens": 64,
        "seed": -5,
    }
    page.click("Settings")
    fill(page, "system", "Be brief.", *values.values(), "\n\n###\nEND")
    page.click("Done")
    assert "temperature 0.7 · top p 0.9" in page.text("#footnote")
    page.reload().ask_and_wait("?")
    request = server.requests[0]
    assert {name: request[name] for name in values} == values
    assert request["stop"] == ["###", "END"]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    page.click("Settings")
    fill(page, "system", "", 3)  # out of range: not taken
    page.click("Defaults")
    page.click("Done")
    page.ask_and_wait("?")
    request = server.requests[1]
    assert (request["temperature"], request["messages"][0]["role"]) == (0, "user")
    assert not {*values, "stop"} - {"temperature"} & set(request)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\nc\nd\ne", "Four lines at most, please."),
        ("x" * 257, "A line may have 256 characters at most."),
    ],
    ids=["many", "long"],
)
def test_more_stops_than_the_server_takes(text: str, said: str, page: Page, server: PageServer) -> None:
    page.click("Settings")
    fill(page, "stop", text)
    page.click("Done")
    assert page.active == page.one("#setting-stop")
    assert page.active.get_property("validationMessage") == said
    fill(page, "stop", "a\n\nb\nc\n" + "x" * 256)
    page.click("Done")
    page.ask_and_wait("?")
    assert server.requests[0]["stop"] == ["a", "b", "c", "x" * 256]


def test_a_model_is_chosen_and_remembered(page: Page, server: PageServer) -> None:
    server.models["data"] += [{"id": "pirate", "parent": "served-owl"}]
    page.reload()
    page.one("#model").send_keys("pirate")
    assert page.text("#footnote").startswith("pirate answers here")
    page.reload().ask_and_wait("?")
    assert server.requests[0]["model"] == "pirate"
    assert page.text(".assistant h2") == "pirate"


def test_dark_and_light(page: Page) -> None:
    def ground() -> int:
        """Red of the page's ground."""
        colour = page.run("return getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", colour)[0])

    def system(scheme: str) -> None:
        page.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    try:
        for scheme, theirs in (("light", True), ("dark", False)):
            system(scheme)
            page.until(lambda theirs=theirs: (ground() > 128) is theirs)
            assert page.one("#theme").get_attribute("aria-pressed") == str(not theirs).lower()
        page.click("Dark")  # light by choice
        assert ground() > 128
        page.reload()
        assert ground() > 128
        page.click("Dark")  # what the system has: follows it again
        assert ground() < 128
        system("light")
        page.until(lambda: ground() > 128)
    finally:
        page.emulate("setEmulatedMedia", features=[])


def test_a_phone_s_width(page: Page, server: PageServer) -> None:
    page.emulate("setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=1, mobile=False)
    try:
        server.models["data"] = [{"id": f"a-rather-long-name-of-a-model-{n}"} for n in range(2)]
        page.reload()

        def fits() -> None:
            wide = (
                "return [...document.querySelectorAll('body *:not(.unseen)')]"
                ".filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 375.5)"
                ".map(e => e.outerHTML.slice(0, 80))"
            )
            assert page.run(wide) == []
            assert page.run("return document.documentElement.scrollWidth") == 375
            # A fingertip finds it, and its words are in one line.
            heights = (
                "return [...document.querySelectorAll('select, button:not(#example, .pictures button)')]"
                ".filter(e => e.checkVisibility()).map(e => [e.textContent, e.offsetHeight])"
            )
            assert [found for found in page.run(heights) if not 40 <= found[1] <= 48] == []

        fits()
        page.choose(SCENE, SIGN, TWO, SCENE)
        page.thumbs(4)
        fits()
        server.scripts.append(answer("w" * 500))
        page.ask_and_wait("v" * 200)
        server.scripts.append((400, {"error": {"message": "m" * 300}}))
        page.ask("x")
        page.until(lambda: page.all(".trouble"))
        fits()
        page.click("Edit", ".message:first-child")
        fits()
        page.click("Cancel")
        page.click("Settings")
        fits()
    finally:
        page.emulate("clearDeviceMetricsOverride")


def test_a_new_conversation_is_seen_from_its_top(page: Page, server: PageServer) -> None:
    page.emulate("setDeviceMetricsOverride", width=1200, height=657, deviceScaleFactor=1, mobile=False)
    try:
        page.click("Settings")
        fill(page, "system", "Be brief.\n" * 9)
        page.click("Done")
        page.ask_and_wait("?")
        page.click("New conversation")
        page.until(lambda: page.one("#welcome").is_displayed())
        assert page.run("return [scroller.scrollTop, scroller.scrollHeight > scroller.clientHeight]") == [
            0,
            True,
        ]
        page.ask("?")
        page.until(lambda: page.run("return scroller.scrollTop") > 0)
    finally:
        page.emulate("clearDeviceMetricsOverride")


# --- when something goes wrong ------------------------------------------------------------------------------


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


# --- keeping a conversation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [200, pytest.param(2600, marks=pytest.mark.slow)])
def test_a_reload_keeps_the_conversation(side: int, page: Page, server: PageServer, tmp_path: Path) -> None:
    """The larger picture, 6 MiB, is one that no sessionStorage would hold."""
    path = tmp_path / "noise.png"
    Image.effect_noise((side, side), 90).save(path)
    page.choose(path)
    page.thumbs(1)
    page.ask_and_wait("What is it?")
    page.reload()
    page.until(lambda: page.answers() == ["It is red."])
    page.ask_and_wait("Sure?")
    assert server.requests[1]["messages"][0] == server.requests[0]["messages"][0]
    page.click("New conversation")
    page.reload()
    assert page.all(".message") == []


def test_a_reload_keeps_what_was_not_sent(page: Page) -> None:
    page.composer.send_keys("What colour", Keys.SHIFT, Keys.ENTER, Keys.NULL, "is it?")
    page.reload()
    assert page.composer.get_property("value") == "What colour\nis it?"
    page.ask_and_wait("")
    page.reload()
    assert page.composer.get_property("value") == ""


def test_a_reload_in_the_middle_keeps_what_came(page: Page, server: PageServer) -> None:
    server.scripts.append(endless("The star "))
    page.ask("What colour?")
    page.until(lambda: page.answers() == ["The star "])
    page.reload()
    page.until(lambda: page.answers() == ["The star "])
    assert "broke off" in page.text(".assistant .note")


def test_two_tabs_keep_two_conversations(page: Page, server: PageServer) -> None:
    """A copied tab begins with the conversation of the first, and then goes its own way."""
    page.ask_and_wait("What colour?")
    first = page.driver.current_window_handle
    page.run("window.open('/')")
    (second,) = set(page.driver.window_handles) - {first}
    page.driver.switch_to.window(second)
    try:
        page.ready()
        page.until(lambda: page.answers() == ["It is red."])
        page.ask_and_wait("Sure?")
        page.reload()
        page.until(lambda: len(page.answers()) == 2)
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    page.reload()
    page.until(lambda: page.answers() == ["It is red."])


def test_export_and_import_with_the_terminal_s_file(
    page: Page, server: PageServer, downloads: Path, tmp_path: Path
) -> None:
    talk = Conversation(system="Be brief.")
    talk.add(user_message("What <b>colour</b>?", [SCENE]), "Réd\n\nindeed.")
    talk.save(tmp_path / "talk.json", embed=True)
    page.one("#import-file").send_keys(str(tmp_path / "talk.json"))
    page.until(lambda: page.answers() == ["Réd\n\nindeed."])
    left = "return document.querySelector(arguments[0]).getBoundingClientRect().left"
    assert page.run(left, ".assistant .tools svg") - page.run(left, ".assistant .text") < 2
    page.ask_and_wait("Sure?")
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert server.requests[0]["messages"][1]["content"] == shown(SCENE, text="What <b>colour</b>?")
    page.click("Export the conversation")
    page.until(lambda: list(downloads.glob("owl-*.json")))
    (path,) = downloads.glob("owl-*.json")
    assert load_messages(path) == [
        *server.requests[0]["messages"],
        {"role": "assistant", "content": "It is red."},
    ]


def test_a_file_that_does_not_fit_changes_nothing(page: Page, tmp_path: Path) -> None:
    path, content = tmp_path / "talk.json", [{"type": "image", "image": "/home/me/a.png"}]
    for text, said in (
        ("{", "this file is not readable as JSON"),
        ("3", 'wanted {"messages": [...]} or a list of messages'),
        ('[{"role": "owl"}]', "message 0: the role is none of system, developer, user, assistant"),
        (
            json.dumps([{"role": "user", "content": content}]),
            "message 0, part 0: the image is a file of another machine; /save in the terminal chat puts "
            "pictures inside",
        ),
    ):
        path.write_text(text)
        page.one("#import-file").send_keys(str(path))
        page.until(lambda said=said: page.text("#notice span") == f"talk.json: {said}.")
    assert page.one("#welcome").is_displayed()


# --- hands, eyes and ears -----------------------------------------------------------------------------------


def test_everything_is_reached_by_the_keyboard_and_seen(page: Page, server: PageServer) -> None:
    server.models["data"] += [{"id": "pirate"}]
    page.reload()
    page.choose(SCENE)
    page.thumbs(1)
    page.ask_and_wait("What colour?")
    page.choose(SIGN)
    page.thumbs(1)
    controls = page.run(
        "return [...document.querySelectorAll('button, select, textarea, input')]"
        ".filter(e => e.checkVisibility() && !e.disabled)"
    )
    assert len(controls) >= 16
    reached: list[WebElement] = []
    for _ in range(len(controls) + 5):
        page.press(Keys.TAB)
        focus = page.active
        if focus in reached or focus.tag_name == "body":  # the browser's own controls stand between
            continue
        reached.append(focus)
        ring = page.run(
            "const ring = e => e && getComputedStyle(e).outlineStyle !== 'none';"
            "return ring(arguments[0]) || ring(arguments[0].closest('.composer'))",
            focus,
        )
        assert ring, f"no focus ring on {focus.accessible_name}"
    assert [c.accessible_name for c in controls if c not in reached] == []
    assert all(control.accessible_name for control in reached)


def test_a_conversation_without_a_mouse(page: Page, server: PageServer) -> None:
    assert page.active == page.composer
    page.press("h", "i")
    page.ask_and_wait("?")
    page.press(Keys.SHIFT, Keys.TAB)  # back to the last answer's buttons
    page.until(lambda: page.active.accessible_name == "Continue")
    page.press(Keys.SHIFT, Keys.TAB)
    server.scripts.append(answer("Crimson."))
    page.press(Keys.ENTER)
    page.until(lambda: page.answers() == ["Crimson."] and not page.busy)
    assert page.active == page.composer


def test_those_who_hear_the_page(page: Page, server: PageServer) -> None:
    page.choose(SCENE)
    page.thumbs(1)
    page.ask_and_wait("What colour?")
    assert page.text("#status") == "Answer: It is red."
    assert page.one("#status").aria_role == "status"
    assert [heading.text or heading.get_property("textContent") for heading in page.all(".message h2")] == [
        "You",
        "served-owl",
    ]
    assert page.one(".pictures button").accessible_name == "Picture 1, enlarge"
    assert page.one("main").accessible_name == "Conversation"


def test_the_newest_stays_in_sight_unless_the_reader_scrolls_up(page: Page, server: PageServer) -> None:
    parts = [threading.Event(), threading.Event()]

    def long_answer() -> Iterator[Any]:
        for part in parts:
            yield from (chunk(f"line {n}\n") for n in range(200))
            assert part.wait(20)
        yield from (chunk("the end"), chunk("", "stop"), END)

    def below() -> float:
        return page.run("const s = scroller; return s.scrollHeight - s.scrollTop - s.clientHeight")

    server.scripts.append(long_answer())
    page.ask("?")
    page.until(lambda: page.answers()[0].count("line") == 200 and below() < 2)
    page.run("scroller.scrollTop -= 1000")
    page.until(lambda: page.one("#newest").is_displayed())
    top = page.run("return scroller.scrollTop")
    parts[0].set()
    page.until(lambda: page.answers()[0].count("line") == 400)
    assert page.run("return scroller.scrollTop") == top
    page.click("To the newest")
    page.until(lambda: below() < 2 and not page.one("#newest").is_displayed())
    parts[1].set()
    page.until(lambda: not page.busy and below() < 2)


def test_a_very_long_answer_is_laid_out_in_pieces(page: Page, server: PageServer) -> None:
    lines = [f"{n} " + "word " * 20 for n in range(3000)]
    script = [chunk("\n".join(lines[n : n + 10]) + ("\n" if n < 2990 else "")) for n in range(0, 3000, 10)]
    server.scripts.append([*script, chunk("", "stop"), USAGE, END])
    page.ask_and_wait("?")
    pieces = page.texts(".assistant .text > div")
    assert "\n".join(pieces) == "\n".join(lines)
    assert max(map(len, pieces)) < 10_000
    assert len(pieces) > 30


# --- the real server ----------------------------------------------------------------------------------------


@contextmanager
def real_server(log: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """owl-nano at a free port -> its origin."""
    command = [sys.executable, "-m", "owl_fast.serve", "--port", "0", "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=EXAMPLES.parent, env={**os.environ, **environment}
        )
    try:
        deadline = time.monotonic() + 120
        while (found := re.search(r"^ready: (\S+)", log.read_text(), re.MULTILINE)) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[1], process
    finally:
        process.terminate()
        process.wait(60)


def test_the_page_and_its_server(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("owl_fast.serve", reason="this checkout has no server")
    key = "a-key-that-is-long-enough"
    with real_server(tmp_path / "log", OWL_API_KEY=key) as (origin, process):
        page = Page(browser, origin)
        browser.get(origin)
        page.until(lambda: page.all("#key-dialog[open]") and page.active.accessible_name == "API key")
        page.active.send_keys(key, Keys.ENTER)
        page.ready().one("#example").click()
        page.thumbs(1)
        assert page.ask_and_wait("") == "The star is red."
        note = r"\d+ tok · [\d.]+ tok/s · first token \d+ ms · picture \d+ ms · context \d+/2048"
        assert re.fullmatch(note, page.text(".assistant .note"))
        page.click("Settings")
        fill(page, "max_tokens", "3")
        page.click("Done")
        begun = page.ask_and_wait("Where is the circle?")
        page.until(lambda: page.texts(".assistant .note")[-1].endswith("cut at the length limit"))
        page.click("Settings")
        page.click("Defaults")
        page.click("Done")
        page.click("Continue")
        page.until(lambda: not page.busy and page.answers()[-1] != begun)
        whole = page.answers()[-1]
        assert whole.startswith(begun)
        page.click("Retry")
        page.until(lambda: not page.busy and page.answers()[-1] == whole)
        page.choose(*[SIGN] * 4)
        page.thumbs(4)
        page.ask("?")
        page.until(lambda: page.texts(".trouble p") == ["5 pictures came; at most 4"])
        process.terminate()
        process.wait(60)
        page.click("Retry")
        page.until(lambda: page.text(".trouble p").startswith("The server cannot be reached."))
        assert page.complaints() == []
        assert page.strangers() == []
