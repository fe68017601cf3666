"""A conversation outlives a reload, and moves between page and terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from owl_fast.conversation import Conversation, load_messages, user_message
from tests.serving.page.content import SCENE, shown
from tests.serving.page_server import PageServer, endless

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page


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
