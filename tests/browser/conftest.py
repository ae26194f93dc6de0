"""One browser for all tests here, and for each test services of its own and pages to look at them.

Without a browser these tests are skipped; with ``REQUERY_REQUIRE_BROWSER=1`` they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Error, async_playwright, expect

from tests.browser.browser import NAMES, PATIENCE_MS, Scheme, Watched, launch, watched
from tests.browser.served import Served, serving

# Read before the tests, which see no REQUERY_* variable of whoever runs them.
_REQUIRED = os.environ.get("REQUERY_REQUIRE_BROWSER") == "1"

expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True)
class Start:
    """Starts services and opens pages, which end with the test."""

    browser: Browser
    stack: AsyncExitStack
    pages: list[Watched]

    async def service(self, **options: Any) -> Served:
        return await self.stack.enter_async_context(serving(**options))

    async def page(self, served: Served, *, scheme: Scheme = "light", width: int = 1180) -> Watched:
        page = await self.stack.enter_async_context(
            watched(self.browser, served.url, scheme=scheme, width=width)
        )
        self.pages.append(page)
        return page


Both = Callable[..., Awaitable[tuple[Served, Watched]]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        try:
            found, why = await launch(playwright), f"none of {', '.join(NAMES)} is on the PATH"
        except Error as error:
            found, why = None, f"it does not start: {error.message.splitlines()[0]}"
        if found is None:
            (pytest.fail if _REQUIRED else pytest.skip)(
                f"no browser: {why}, and 'playwright install --with-deps chromium' has not been run"
            )
        yield found
        await found.close()


@pytest_asyncio.fixture(loop_scope="session")
async def start(browser: Browser) -> AsyncIterator[Start]:
    """Whatever a page complains of that its test has not announced fails the test."""
    async with AsyncExitStack() as stack:
        begun = Start(browser, stack, [])
        yield begun
    assert [page.unexpected for page in begun.pages] == [[] for _ in begun.pages]


@pytest.fixture
def both(start: Start) -> Both:
    """Starts a service with these settings, and opens a page on it."""

    async def begin(**options: Any) -> tuple[Served, Watched]:
        served = await start.service(**options)
        return served, await start.page(served)

    return begin
