"""Pictures are chosen, pasted, dropped, and made to fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.serving.page.content import SCENE, SIGN, TWO, sent_pictures, shown
from tests.serving.page_server import PageServer

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page


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
