"""A headless Chromium with the page in it, and what a person does there."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WAIT = 20.0
# How a person's paste and drop look to the page.
PASTE = """
const transfer = new DataTransfer();
for (const [name, type, data] of arguments[1]) {
  transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type}));
}
if (arguments[2]) transfer.setData("text/plain", arguments[2]);
const init = {bubbles: true, cancelable: true};
const events = arguments[3] === "paste"
  ? [new ClipboardEvent("paste", {...init, clipboardData: transfer})]
  : ["dragenter", "dragover", "drop"].map(name => new DragEvent(name, {...init, dataTransfer: transfer}));
return events.map(event => arguments[0].dispatchEvent(event));
"""


def find_browser() -> tuple[str, str] | None:
    """Paths of a Chromium and its driver."""
    browsers = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    browser, driver = next(filter(None, browsers), None), shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser(downloads: Path) -> Iterator[webdriver.Chrome]:
    found = find_browser()
    assert found
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    # No sandbox: as root Chromium has none. No /dev/shm: containers have little of it.
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,800"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    def __init__(self, driver: webdriver.Chrome, origin: str) -> None:
        self.driver, self.origin = driver, origin

    def open(self) -> Page:
        self.driver.get(self.origin)
        return self.ready()

    def reload(self) -> Page:
        self.driver.refresh()
        return self.ready()

    def forget(self) -> None:
        """The next one to open the page will not have been here."""
        self.run("sessionStorage.clear(); localStorage.clear()")

    def ready(self) -> Page:
        self.until(lambda: "answers here" in self.text("#footnote"))
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        wait = WebDriverWait(self.driver, WAIT, poll_frequency=0.02)
        return wait.until(lambda _: condition())

    # --- seeing ---

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (element,) = self.all(selector)
        return element

    def text(self, selector: str) -> str:
        return "\n".join(
            self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)
        )

    def texts(self, selector: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def answers(self) -> list[str]:
        return self.texts(".assistant .text")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    @property
    def composer(self) -> WebElement:
        return self.one("footer textarea")

    @property
    def active(self) -> WebElement:
        return self.driver.switch_to.active_element

    @property
    def busy(self) -> bool:
        return self.one("[aria-label=Stop]").is_displayed()

    # --- doing ---

    def ask(self, text: str) -> None:
        self.composer.send_keys(text, Keys.ENTER)

    def ask_and_wait(self, text: str) -> str:
        count = len(self.all(".message"))
        self.ask(text)
        self.until(lambda: len(self.all(".message")) == count + 2 and not self.busy)
        return self.answers()[-1]

    def press(self, *keys: str) -> None:
        actions = ActionChains(self.driver)
        for key in keys[:-1]:
            actions.key_down(key)
        actions.send_keys(keys[-1])
        for key in keys[:-1]:
            actions.key_up(key)
        actions.perform()

    def click(self, label: str, last: str = "body") -> None:
        """The visible button of this name, in the last element that fits `last`."""
        inside = self.all(last)[-1].find_elements(By.CSS_SELECTOR, "button")
        (found,) = [b for b in inside if b.is_displayed() and (b.accessible_name == label or b.text == label)]
        found.click()

    def give(self, how: str, files: list[Path], text: str = "", to: WebElement | None = None) -> list[bool]:
        """how: "paste" or "drop"."""
        sent = [
            (path.name, f"image/{path.suffix[1:]}", base64.b64encode(path.read_bytes()).decode())
            for path in files
        ]
        return self.run(PASTE, to or self.composer, sent, text, how)

    def choose(self, *files: Path) -> None:
        self.one("footer input[type=file]").send_keys("\n".join(map(str, files)))

    def thumbs(self, count: int) -> None:
        self.until(lambda: len(self.all("footer .thumbs img")) == count)

    def fill(self, name: str, *values: object) -> None:
        """The setting of this name and those behind it, which Tab selects."""
        field = self.one(f"#setting-{name}")
        field.clear()
        field.send_keys("".join(f"{value}{Keys.TAB}" for value in values))

    def emulate(self, command: str, **parameters: Any) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{command}", parameters)

    # --- what the browser noticed ---

    def complaints(self) -> list[str]:
        """Errors in the page's code and violations of its policy."""
        said = (entry["message"] for entry in self.driver.get_log("browser"))
        return [text for text in said if "Uncaught" in text or "Content Security Policy" in text]

    def strangers(self) -> list[str]:
        """Requests that left the origin."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith((f"{self.origin}/", "data:", "blob:"))]
