"""A Chromium to drive, wherever this machine has one, and what its pages complain about."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, ConsoleMessage, Page, Playwright, Request

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 30_000
"""Bounds what should have happened; nothing is asserted about how long it took."""
Scheme = Literal["light", "dark"]
_GRAVE = {"serious", "critical"}


def find_browser(own: Path) -> Path | None:
    """One on the PATH, else playwright's ``own`` if it was installed, else none."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    return own if own.exists() else None


async def launch(playwright: Playwright) -> Browser | None:
    """A running browser; none if there is none."""
    path = find_browser(Path(playwright.chromium.executable_path))
    if path is None:
        return None
    # Chromium's sandbox needs rights that root gives up and containers often withhold.
    sandbox = os.geteuid() != 0
    return await playwright.chromium.launch(
        executable_path=path, chromium_sandbox=sandbox, args=["--disable-dev-shm-usage"]
    )


@dataclass
class Watched:
    """A page, and every error of it: of scripts, of the security policy, of loading."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    _expected: list[str] = field(default_factory=list)

    def expect_complaints(self, *parts: str) -> None:
        """A complaint that holds one of these belongs to the test."""
        self._expected += parts

    @property
    def unexpected(self) -> list[str]:
        return [c for c in self.complaints if not any(part in c for part in self._expected)]

    async def open(self, tab: str = "") -> Page:
        """The console at a tab (or with a query: ``try?q=...``), with what it loads at once."""
        await self.page.goto(f"{self.url}/#{tab}")
        return self.page

    async def use_key(self, key: str, author: str = "") -> None:
        """Enter a key as a person does."""
        await self.page.click("#key-button")
        await self.page.fill("#key-input", key)
        await self.page.fill("#author-input", author)
        await self.page.click("dialog button[type=submit]")

    def asked(self, request: Request) -> None:
        """The console works offline: whatever it wants, it wants from its own service."""
        if not request.url.startswith((self.url, "blob:")):
            self.complaints.append(f"asks {request.url}")

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@asynccontextmanager
async def watched(
    browser: Browser, url: str, *, scheme: Scheme = "light", width: int = 1180, height: int = 900
) -> AsyncIterator[Watched]:
    """A page of its own, without anything of former ones, and its complaints."""
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = await context.new_page()
        seen = Watched(page, url)
        page.on("console", seen.heard)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", seen.asked)
        yield seen
    finally:
        await context.close()


async def grave_issues(page: Page) -> list[str]:
    """What axe-core finds on the page that it calls serious or critical."""
    await page.evaluate(AXE_SCRIPT)
    report: dict[str, Any] = await page.evaluate(
        "() => axe.run(document, {resultTypes: ['violations']})"
    )
    return [
        f"{one['id']} ({one['impact']}): {[node['target'] for node in one['nodes']]}"
        for one in report["violations"]
        if one["impact"] in _GRAVE
    ]
