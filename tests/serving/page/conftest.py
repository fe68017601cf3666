"""A headless Chromium for all tests of the page, and the page as somebody finds it who was never there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chat.fake_server import answer
from tests.serving.page_server import PageServer

if TYPE_CHECKING:
    from tests.serving.page_driver import Page


@pytest.fixture(scope="package")
def server() -> Iterator[PageServer]:
    with PageServer(default=lambda _: iter(answer("It is red."))).running() as running:
        assert isinstance(running, PageServer)
        yield running


@pytest.fixture(scope="package")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="package")
def browser(downloads: Path) -> Iterator[Any]:
    from tests.serving.page_driver import find_browser, open_browser

    if find_browser() is None:
        pytest.skip("no Chromium with its driver (Debian: apt install chromium chromium-driver)")
    with open_browser(downloads) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, server: PageServer) -> Iterator[Page]:
    """Nobody has used it. Whatever a test does, nothing leaves the origin or breaks the policy."""
    from tests.serving.page_driver import Page

    server.reset()
    page = Page(browser, server.origin)
    yield page.open()
    page.forget()
    assert page.complaints() == []
    assert page.strangers() == []
