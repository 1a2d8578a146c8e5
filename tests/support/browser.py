"""A headless Chromium, and pages that are looked at closely."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

# As root, without a network, and without looking for one.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Milliseconds for whatever a page is expected to come to show.
expect.set_options(timeout=60_000)


def find_chromium() -> str | None:
    """Return where Chromium is, or none if it is not installed."""
    return shutil.which("chromium")


@contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """Give a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def looking(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """Give a page, which must not complain, neither of itself nor of what its security policy forbids."""
    opened = browser.new_context(**context)
    complaints: list[str] = []
    page = opened.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(url)
        yield page
        assert complaints == []
    finally:
        opened.close()


def violations(page: Page) -> list[str]:
    """Return what axe-core has to complain of."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
