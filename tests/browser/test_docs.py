"""``/docs``: the OpenAPI document as a page, which asks nothing of another host."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Both

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def test_it_lists_the_operations_and_sends_one(both: Both) -> None:
    """Every request to another host, and every breach of the policy, fails the test."""
    served, watched = await both()
    page = watched.page
    await page.goto(f"{served.url}/docs")
    await expect(page.locator(".info .title")).to_contain_text("Requery")
    await page.locator(".opblock-summary", has_text="/livez").first.click()
    await page.get_by_role("button", name="Try it out").click()
    await page.get_by_role("button", name="Execute").click()
    await expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text(
        "200"
    )
