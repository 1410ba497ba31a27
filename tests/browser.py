"""Fixture and pages of the system's Chromium."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

SIZES: Mapping[str, tuple[int, int]] = {"phone": (390, 844), "desktop": (1440, 900)}
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--autoplay-policy=no-user-gesture-required",
)
TIMEOUT_MS = 60_000
STARTED = """
window.started = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...times) {
    window.started.push(this);
    document.documentElement.dataset.started = window.started.length;
    return start.apply(this, times);
};
"""
"""Script that keeps the Web Audio sources which a page starts, and shows their number as an attribute."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return the system's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(
    chromium: Any, address: str, size: str = "desktop", script: str = "", expected_error: str = "", **context: Any
) -> Iterator[Any]:
    """Open a page, and require at the end that it reported no other error and asked no other host.

    Args:
        chromium: The browser.
        address: Address of the page.
        size: Name of the size of the window.
        script: Script to run before those of the page.
        expected_error: Text of the errors that the page may report, or "" for none.
        context: Options of the browser context.
    """
    width, height = SIZES[size]
    browsing = chromium.new_context(viewport={"width": width, "height": height}, **context)
    page, errors, requests = browsing.new_page(), list[str](), list[str]()
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.add_init_script(STARTED + script)
    page.goto(address)
    yield page
    browsing.close()
    assert not [error for error in errors if not expected_error or expected_error not in error]
    host = re.sub(r"[^/]*$", "", address)
    assert all(url.startswith((host, "data:", "blob:")) for url in requests)


def expect(locator: Any) -> Any:
    """Return the assertions about a locator, which wait until they hold."""
    from playwright.sync_api import expect as assertions

    assertions.set_options(timeout=TIMEOUT_MS)
    return assertions(locator)
