"""Settings, the choice of a model, and the looks of the page."""

from __future__ import annotations

import re

import pytest

from tests.chat.fake_server import answer
from tests.serving.page.content import SCENE, SIGN, TWO
from tests.serving.page_server import PageServer

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")

from tests.serving.page_driver import Page


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
    page.fill("system", "Be brief.", *values.values(), "\n\n###\nEND")
    page.click("Done")
    assert "temperature 0.7 · top p 0.9" in page.text("#footnote")
    page.reload().ask_and_wait("?")
    request = server.requests[0]
    assert {name: request[name] for name in values} == values
    assert request["stop"] == ["###", "END"]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    page.click("Settings")
    page.fill("system", "", 3)  # out of range: not taken
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
    page.fill("stop", text)
    page.click("Done")
    assert page.active == page.one("#setting-stop")
    assert page.active.get_property("validationMessage") == said
    page.fill("stop", "a\n\nb\nc\n" + "x" * 256)
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
        page.fill("system", "Be brief.\n" * 9)
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
