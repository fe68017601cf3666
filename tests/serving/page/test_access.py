"""The page by keyboard, by ear, and while it scrolls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chat.fake_server import USAGE, answer, chunk
from tests.serving.page.content import SCENE, SIGN
from tests.serving.page_server import END, PageServer

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.serving.page_driver import Page


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
