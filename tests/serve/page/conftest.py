from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium

SCREENSHOTS = Path(__file__).parents[3] / "build/screenshots"  # kept, to be looked at


class Page:
    """The live page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(url)
        self.until("return document.querySelector('#state').textContent !== 'Connecting'")

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any, seconds: float = 20) -> Any:
        """What the script returns, once that is something. Raises TimeoutException."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: self.run(script, *arguments))

    def until_text(self, selector: str, text: str) -> None:
        self.until("return document.querySelector(arguments[0]).textContent === arguments[1]", selector, text)

    def press(self, *keys: str) -> None:
        """On the element that has the focus, as a keyboard does."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def console(self) -> list[str]:
        """What it has complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, name: str) -> None:
        """The whole page, however long, into build/screenshots/."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser"), width=1440, height=900) as driver:
        yield driver


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    """Nobody has used it before."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    yield Page(driver)
    driver.get("about:blank")  # asks no server any more
