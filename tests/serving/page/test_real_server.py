"""The page and owl-nano behind the real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.content import EXAMPLES, SIGN

pytest.importorskip("selenium", reason="the page is driven with selenium (pip install selenium)")
from selenium.webdriver.common.keys import Keys

from tests.serving.page_driver import Page


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
        page.fill("max_tokens", "3")
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
