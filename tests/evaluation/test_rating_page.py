"""The rating page in a headless Chromium, by keyboard as raters use it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owl_fast.errors import DiskError
from owl_fast.evaluate.rating.book import Book
from owl_fast.evaluation.ratings import read_ratings
from tests.evaluation.rating_server import ANSWERS, HOSTILE, SYSTEMS, Desk, rating, small_study

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page, find_browser, open_browser

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium with its driver (Debian: apt install chromium chromium-driver)",
)
SYSTEM_OF = {text.strip(): name for name, texts in SYSTEMS.items() for text in texts}


class RatingPage(Page):
    def ready(self) -> RatingPage:
        self.until(lambda: self.all(".card, .start h1"))
        return self

    def enter(self, name: str) -> RatingPage:
        self.one("#name").send_keys(name, Keys.ENTER)
        self.until(lambda: self.all("#rater")[0].text == name)
        return self

    def says(self, progress: str) -> None:
        self.until(lambda: self.text("#progress") == progress)

    def pressed(self, number: int) -> list[str]:
        """What is marked on an answer: the grade, and letters of abilities."""
        return self.run(
            "return [...document.querySelectorAll('.card')[arguments[0] - 1].querySelectorAll("
            "'[aria-pressed=true]')].map(e => e.dataset.grade ?? e.dataset.tick)",
            number,
        )

    def marked(self, number: int, *marks: str) -> None:
        self.until(lambda: self.pressed(number) == list(marks))

    def type(self, *keys: str) -> None:
        for key in keys:
            self.press(key)

    def unread(self) -> None:
        """Until a failure can have been read, keys are not heard."""
        end = self.run("return performance.now()") + 1000
        self.until(lambda: self.run("return performance.now()") > end)

    @property
    def question(self) -> str:
        return self.text("#asked h1")

    def at(self, question: str) -> None:
        self.until(lambda: self.question == question)

    @property
    def chosen(self) -> int:
        return (
            self.run("return [...document.querySelectorAll('.card')].findIndex(e => e.matches('.chosen'))")
            + 1
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with rating(small_study(tmp_path)) as running:
        yield running


@pytest.fixture
def page(browser: Any, desk: Desk) -> Iterator[RatingPage]:
    """Whatever a test does, nothing leaves the origin or breaks the policy, and no system is named."""
    page = RatingPage(browser, desk.origin)
    page.open()
    yield page
    assert "secret-" not in page.run("return document.documentElement.outerHTML")
    page.forget()
    assert page.complaints() == []
    assert page.strangers() == []


def test_everything_by_keyboard(page: RatingPage, desk: Desk) -> None:
    assert "4 questions, 11 answers" in page.text(".start")
    page.enter("ann")
    page.says(f"0 of 4 questions, 0 of {ANSWERS} answers")
    assert (page.question, page.chosen, len(page.all(".card"))) == ("What color is the circle?", 1, 3)
    page.type("b", "i", "v", "v", "j", "A", "s", Keys.ARROW_DOWN, "d")
    page.marked(1, "B", "a")
    page.marked(2, "A", "a", "b")
    page.marked(3, "D")
    page.says(f"1 of 4 questions, 3 of {ANSWERS} answers")
    page.type(Keys.ENTER)
    page.at("What is on the left?")
    page.type("2", "c", "k", "c")
    page.says(f"1 of 4 questions, 5 of {ANSWERS} answers")

    page.reload()  # in the middle: at the first question that is not rated, and its first such answer
    page.at("What is on the left?")
    assert (page.text("#rater"), page.chosen) == ("ann", 3)
    page.marked(1, "C")
    page.type("a", "n", "1", "a", "j", "a", "j", "a", "n")
    page.at("How many shapes are there?")
    page.type("a", "j", "b", Keys.ENTER)
    page.until(lambda: page.text(".start h1") == "Everything is rated")
    assert f"owleval report {desk.study.folder}" in page.text(".start code")
    ratings = read_ratings(desk.study.folder)
    assert len(ratings) == ANSWERS
    grades = {(one.question, one.system): one.grade for one in ratings}
    for question in desk.questions():
        for one in question["answers"]:
            assert grades[question["id"], SYSTEM_OF[one["text"]]] == one["grade"]
    page.reload()
    assert page.text(".start h1") == "Everything is rated"


def test_going_back_changes_what_was_rated(page: RatingPage, desk: Desk) -> None:
    page.enter("ann")
    page.type("b", "j", "b", "j", "b", "n")
    page.at("What is on the left?")
    page.type("p")
    page.at("What color is the circle?")
    page.marked(1, "B")
    assert page.chosen == 1
    page.type("a", "r", "i")  # reasoning is none of this question's
    page.marked(1, "A", "a")
    page.type("u")
    page.marked(1, "A")
    page.type("u")
    page.marked(1, "B")
    page.type("n")
    page.at("What is on the left?")
    page.type("u")  # comes back to where the change was
    page.at("What color is the circle?")
    page.marked(3)
    page.says(f"0 of 4 questions, 2 of {ANSWERS} answers")
    assert len(read_ratings(desk.study.folder)) == 2


def test_a_second_rater_and_a_second_tab(page: RatingPage, desk: Desk) -> None:
    page.enter("ann").type("a", "j", "b")
    page.says(f"0 of 4 questions, 2 of {ANSWERS} answers")
    first, driver = page.driver.current_window_handle, page.driver
    try:
        driver.switch_to.new_window("tab")
        page.open()
        assert "ann2 rated" in page.texts(".known button")[0]
        page.enter("bob")
        page.says(f"0 of 4 questions, 0 of {ANSWERS} answers")
        page.type("d")
        page.marked(1, "D")
        page.click("bob")
        page.until(lambda: page.all(".known"))
        page.all(".known button")[0].click()  # ann once more, in this tab
        page.says(f"0 of 4 questions, 2 of {ANSWERS} answers")
        page.marked(1, "A")
        page.type("1", "c")
        page.marked(1, "C")
        driver.close()
    finally:
        driver.switch_to.window(first)
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.marked(1, "C")
    assert [line["grade"] for line in desk.lines("ann")] == ["A", "B", "C"]
    assert [line["grade"] for line in desk.lines("bob")] == ["D"]


def test_texts_are_texts(page: RatingPage) -> None:
    page.enter("ann").type("n", "n")
    page.at("And what color is it?")
    page.until(lambda: HOSTILE in page.texts(".card .text"))
    assert page.run("return window.hacked") is None
    assert "(an empty answer)" in page.run(
        "const look = e => getComputedStyle(e, '::before').content;"
        "return [...document.querySelectorAll('.card .text')].map(look).join()"
    )
    assert [one.get_attribute("open") for one in page.all(".card details")] == [None] * 3
    page.type("e")
    page.until(lambda: all(one.get_attribute("open") for one in page.all(".card details")))
    assert sorted(page.texts(".card dd")) == ["a ball", "a dot", "a square"]
    page.type("n")
    page.until(lambda: "无法回溯" in page.texts(".card .text"))
    assert page.texts(".card .note") == ["The system gave no answer."]


def test_what_is_not_saved_does_not_look_so(
    page: RatingPage, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.enter("ann").type("a")
    page.marked(1, "A")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        page.type("j", "b")
        page.until(lambda: page.one("#trouble").is_displayed())
    said = page.text("#trouble")
    assert said.startswith("Question 1, answer 2 was not saved: ")
    assert said.endswith("ann.jsonl: cannot be written (No space left on device)")
    assert page.pressed(2) == []
    page.says(f"0 of 4 questions, 1 of {ANSWERS} answers")
    page.unread()
    page.type("b")
    page.marked(2, "B")
    page.until(lambda: not page.one("#trouble").is_displayed())
    assert [line["grade"] for line in desk.lines()] == ["A", "B"]


def test_a_server_that_hangs_is_said(page: RatingPage, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    page.enter("ann")
    page.run("const after = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = () => after(100)")
    hangs, write = threading.Event(), os.pwrite

    def slow(*arguments: Any) -> int:
        assert hangs.wait(20)
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", slow)
        page.type("a")
        page.until(lambda: page.one("#trouble").is_displayed())
        said = page.text("#trouble")
        hangs.set()
        page.until(desk.lines)
    assert said.startswith("Question 1, answer 1 was not saved: the server has not answered for 20 s; reload")
    assert page.reload().pressed(1) == ["A"]


def slow_disk(monkeypatch: pytest.MonkeyPatch, full_at: int = 0) -> None:
    """Every change takes a while; the one of this number fails."""
    change, count = Book.change, 0

    def slowly(*args: Any, **changes: Any) -> Any:
        nonlocal count
        count += 1
        time.sleep(0.2)
        if count == full_at:
            raise DiskError("the disk is full")
        return change(*args, **changes)

    monkeypatch.setattr(Book, "change", slowly)


def graded(desk: Desk) -> list[str]:
    """By question, in the order of the page."""
    return ["".join(one["grade"] or "-" for one in question["answers"]) for question in desk.questions()]


def at_once(page: RatingPage, *keys: str) -> None:
    ActionChains(page.driver, duration=0).send_keys(*keys).perform()


def test_keys_wait_their_turn(page: RatingPage, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who types faster than the disk grades what the keys mean, over several questions."""
    slow_disk(monkeypatch)
    page.enter("ann")
    at_once(page, "3", "b", "n", "1", "d", "i", "j", "c", "n", "u", "a", "p", "a")
    page.says(f"0 of 4 questions, 4 of {ANSWERS} answers")
    assert graded(desk) == ["A-B", "DA-", "---", "--"]
    assert [one["shown"] for one in desk.questions()[1]["answers"]] == [["a"], [], []]


def test_enter_goes_to_what_is_next_to_do(
    page: RatingPage, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_disk(monkeypatch)
    page.enter("ann")
    given = "ABCDABCDABC"
    at_once(page, *(key for grade in given.lower() for key in (grade, Keys.ENTER)))
    page.until(lambda: page.text(".start h1") == "Everything is rated")
    assert graded(desk) == ["ABC", "DAB", "CDA", "BC"]
    assert len(desk.lines()) == ANSWERS


def test_enter_comes_back_to_what_was_left_out(page: RatingPage) -> None:
    page.enter("ann").type("2", "b", Keys.ENTER)
    page.until(lambda: page.chosen == 3)
    page.type("c", Keys.ENTER)
    page.until(lambda: page.chosen == 1)
    page.type(Keys.ENTER, Keys.ENTER)  # it has no grade, and is the only one
    assert (page.question, page.chosen) == ("What color is the circle?", 1)
    assert page.text("#status") == "Answer 1 has no grade yet"
    page.type("n", "n", "n", "a", "j", "a", Keys.ENTER)
    page.at("What color is the circle?")
    assert page.chosen == 1
    page.type("a", Keys.ENTER)
    page.at("What is on the left?")


@pytest.mark.parametrize(
    ("keys", "full_at", "left"),
    [
        (("a", Keys.ENTER, "b", Keys.ENTER, "c", Keys.ENTER, "d"), 2, ["A--", "---", "---", "--"]),
        (("a", "j", "b", "j", "c", "n", "1", "d"), 3, ["AB-", "---", "---", "--"]),
        (("a", "u", "n", "d"), 2, ["A--", "---", "---", "--"]),
    ],
)
def test_what_follows_a_failure_is_dropped(
    page: RatingPage,
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    keys: tuple[str, ...],
    full_at: int,
    left: list[str],
) -> None:
    slow_disk(monkeypatch, full_at)
    page.enter("ann")
    at_once(page, *keys)
    page.until(lambda: page.one("#trouble").is_displayed())
    at_once(page, Keys.ENTER, "d")  # nobody reads that fast
    said = page.text("#trouble")
    assert "was not saved: the disk is full" in said
    assert said.endswith("What came after it was dropped.")
    assert graded(desk) == left
    assert page.question == "What color is the circle?"
    again = page.chosen
    page.unread()
    page.type("c")
    page.marked(again, "C")
    page.until(lambda: not page.one("#trouble").is_displayed())


def test_a_click_means_what_it_was_on(page: RatingPage, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_disk(monkeypatch)
    page.enter("ann")
    at_once(page, "a", "n")  # the page is still at the first question
    page.all(".card")[2].find_element("css selector", "[data-grade=D]").click()
    page.until(lambda: graded(desk)[0] == "A-D")
    page.says(f"0 of 4 questions, 2 of {ANSWERS} answers")
    assert (page.question, graded(desk)[1]) == ("What is on the left?", "---")


def test_keys_after_one_that_opens_a_dialog(
    page: RatingPage, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_disk(monkeypatch)
    page.enter("ann")
    at_once(page, "a", "z", "b", Keys.ESCAPE, "j", "c", "?", "d", Keys.ESCAPE, "j", "b")
    page.until(lambda: graded(desk)[0] == "ACB")
    assert page.all("dialog[open]") == []


def test_help_picture_and_mouse(page: RatingPage) -> None:
    page.enter("ann").type("?")
    page.until(lambda: page.one("#help-dialog").is_displayed())
    assert "undo the last change" in page.text("#help-dialog")
    assert "Text in the picture is read rightly." in page.texts("#help-dialog dd")
    page.type("a", Keys.ESCAPE, "z")
    page.until(lambda: page.all("#picture-dialog[open] img"))
    narrow = page.one("#picture-dialog img").size["width"]
    page.type("z")
    page.until(lambda: page.one("#picture-dialog img").size["width"] > 2 * narrow)
    page.type(Keys.ESCAPE)
    page.until(lambda: not page.all("#picture-dialog[open]"))
    assert page.pressed(1) == []  # keys meant for a dialog mark nothing
    page.all(".card")[1].find_element("css selector", "[data-grade=C]").click()
    page.marked(2, "C")
    assert page.chosen == 2
    page.type(Keys.ENTER)  # not the button once more
    page.until(lambda: page.chosen == 3)
    assert page.pressed(2) == ["C"]


def test_what_a_screen_reader_hears(page: RatingPage) -> None:
    page.enter("ann").type("2", "b")
    page.until(lambda: page.text("#status") == "Question 1, answer 2: B, 0 ticked, saved")
    assert page.active.accessible_name == "Answer 2 of 3, rated B"
    names = [one.accessible_name for one in page.all(".card:first-child button")]
    assert names[:2] == ["A: right and complete", "B: acceptable, with small errors or gaps"]
    assert names[4:] == ["instruction understanding", "visual understanding"]
    assert page.all("[data-tick=a]")[0].get_attribute("title") == "The answer does what was asked."
    assert page.one("#asked img").get_attribute("alt") == "The picture of question 1"
    unnamed = [
        e.get_attribute("outerHTML") for e in page.all("button, select, progress") if not e.accessible_name
    ]
    assert [text for text in unnamed if "hidden" not in text] == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1440, "dark")])
def test_it_fits(page: RatingPage, width: int, scheme: str) -> None:
    """No sideways scrolling, and every mark can be read, also beside long answers."""
    page.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.emulate("setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=False)
    try:
        page.enter("ann")
        page.until(lambda: page.run("return document.querySelector('.look img').naturalWidth"))
        grades = page.all("[data-grade=A]")[0].rect
        assert grades["y"] + grades["height"] < page.one("footer").rect["y"]  # without scrolling
        assert page.all("#asked dl")[0].is_displayed() == (width > 960)
        page.one("#asked summary").click()
        page.type("n")
        page.at("What is on the left?")
        assert page.all("#asked dl")[0].is_displayed() == (width < 960)  # as it was left
        page.type("n", "n", "a", "s")
        page.until(lambda: len(page.pressed(page.chosen)) == 4)
        assert page.run("return document.documentElement.scrollWidth") <= width
        assert all(0 <= one.rect["x"] <= width - one.rect["width"] for one in page.all(".card button"))
        assert page.one("#next").is_displayed()
    finally:
        page.emulate("clearDeviceMetricsOverride")
        page.emulate("setEmulatedMedia", features=[])
