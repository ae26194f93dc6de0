"""The tab Overrides: list, add, end now or later."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Both
from tests.browser.served import ADMIN_KEY, Served

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def in_force(served: Served) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = (await served.call("GET", "/overrides")).json()["overrides"]
    return entries


async def add(page: Page, kind: str, subject: str, **fields: str) -> None:
    await page.select_option("#override-kind", kind)
    for name, value in {"subject": subject, "reason": "a test", **fields}.items():
        await page.fill(f"#override-{name}", value)
    await page.click("#override-form button[type=submit]")


async def test_overrides_are_added_and_are_in_force(both: Both) -> None:
    served, console = await both()
    page = await console.open("overrides")
    await expect(page.locator("#override-list")).to_contain_text("No override is in force")
    await page.click("#override-add summary")
    await add(page, "pin", "steele stake", rewrites="steel stake\n\n<i>iron</i> stake\n")
    await expect(page.locator("#override-list tbody tr")).to_have_count(1)
    await add(page, "block_term", "carpet", expires="2040-01-31T18:00")
    rows = page.locator("#override-list tbody tr")
    await expect(rows).to_have_count(2)
    pin = rows.filter(has_text="steele stake")
    await expect(pin.get_by_role("listitem")).to_have_text(["steel stake", "<i>iron</i> stake"])
    await expect(rows.filter(has_text="carpet")).to_contain_text("2040-01-31 18:00:00")
    await page.fill("#override-filter", "CARPET")
    await expect(rows).to_have_count(1)
    answer = (await served.call("POST", "/rewrite", json={"query": "steele stake"})).json()
    assert answer["source"] == "override"


async def test_what_the_service_refuses_is_said_by_the_form(both: Both) -> None:
    served, console = await both()
    console.expect_complaints("status of 422", "status of 409")
    page = await console.open("overrides")
    await page.click("#override-add summary")
    await add(page, "block_term", "!!!")
    notice = page.locator("#override-form-notice")
    await expect(notice).to_contain_text("holds no letter or digit")
    await add(page, "block_query", "outdoor rug")
    await expect(page.locator("#override-list tbody tr")).to_have_count(1)
    await expect(notice).to_be_empty()
    await add(page, "block_query", "Outdoor Rug")
    await expect(notice).to_contain_text("conflict")
    assert len(await in_force(served)) == 1


async def test_an_override_ends_now_or_later(both: Both) -> None:
    served, console = await both()
    for query in ("outdoor rug", "garden hose"):
        body = {"kind": "block_query", "query": query, "reason": "a test"}
        await served.call("POST", "/overrides", json=body)
    page = await console.open("overrides")
    await page.get_by_role("button", name="End garden hose").click()
    await page.check("dialog label:has-text('at a time') input")
    await page.fill("#end-at", "2041-02-03T04:05:06")
    await page.click("dialog button[type=submit]")
    await expect(page.locator("#override-list")).to_contain_text("2041-02-03 04:05:06")
    (later,) = [one for one in await in_force(served) if one["query"] == "garden hose"]
    assert later["expires_at"] == "2041-02-03T04:05:06Z"
    assert later["reason"] == "a test"
    await page.get_by_role("button", name="End outdoor rug").click()
    await page.fill("#end-reason", "sold out")
    await page.click("dialog button[type=submit]")
    await expect(page.locator("#override-list tbody tr")).to_have_count(1)
    audit = (await served.call("GET", "/audit")).json()["entries"][0]
    assert (audit["action"], audit["reason"]) == ("overrides.delete", "sold out")


async def test_a_list_that_is_out_of_date_is_read_again(both: Both) -> None:
    served, console = await both()
    console.expect_complaints("status of 412")
    body = {"kind": "block_query", "query": "outdoor rug", "reason": "a test"}
    await served.call("POST", "/overrides", json=body)
    page = await console.open("overrides")
    await page.get_by_role("button", name="End outdoor rug").click()
    await served.call("POST", "/overrides", json=body | {"query": "garden hose"})
    await page.click("dialog button[type=submit]")
    await expect(page.locator("#override-notice")).to_contain_text("Somebody else has changed")
    await expect(page.locator("#override-list tbody tr")).to_have_count(2)


async def test_a_key_opens_the_list(both: Both) -> None:
    _, console = await both(admin_key=ADMIN_KEY)
    console.expect_complaints("status of 401")
    page = await console.open("overrides")
    await page.locator("#override-list").get_by_role("button", name="Enter a key").click()
    await page.fill("#key-input", ADMIN_KEY)
    await page.click("dialog button[type=submit]")
    await expect(page.locator("#override-list")).to_contain_text("No override is in force")
