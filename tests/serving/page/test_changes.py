"""Answers that are stopped, continued, replaced and changed, and what Undo brings back."""

from __future__ import annotations

import pytest

from tests.chat.fake_server import answer, chunk
from tests.serving.page.content import SCENE, SIGN, shown
from tests.serving.page_server import END, PageServer, endless

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page


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
    page.fill("system", "Be brief.")
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
