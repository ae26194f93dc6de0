"""The tab Traffic: every change is confirmed, made, and in the audit log."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.browser import Watched
from tests.browser.conftest import Both
from tests.browser.served import ADMIN_KEY, Served

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def as_admin(both: Both) -> tuple[Served, Watched, Page]:
    """A service that wants a key, and a page that has it."""
    served, console = await both(admin_key=ADMIN_KEY)
    console.expect_complaints("status of 401")
    page = await console.open("traffic")
    await expect(page.locator("#traffic-audit [role=alert]")).to_be_visible()
    await console.use_key(ADMIN_KEY, "ada")
    await expect(page.locator("#traffic-audit tbody tr")).to_have_count(1)
    return served, console, page


async def routing(served: Served) -> dict[str, Any]:
    shown: dict[str, Any] = (await served.call("GET", "/routing")).json()
    return shown


def latest(page: Page) -> Locator:
    return page.locator("#traffic-audit tbody tr").first


async def confirm(page: Page) -> None:
    await page.click("dialog button[type=submit]")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_weights_default_and_shadow_are_changed_and_audited(both: Both) -> None:
    served, _, page = await as_admin(both)
    await page.check("#routing-split")
    slider = page.get_by_label("Weight of demo-1", exact=True)
    await expect(slider).to_have_value("1000")
    await slider.press("ArrowLeft")  # half a percent
    await expect(page.get_by_label("Weight of demo-2 in percent")).to_have_value("0.5")
    await page.get_by_label("Weight of demo-2 in percent").fill("12.5")
    await page.select_option("#routing-default", "demo-2")
    await page.select_option("#routing-shadow", "demo-1")
    await page.fill("#routing-shadow-share", "2.5")
    before = await routing(served)

    await page.get_by_role("button", name="Review the change").click()
    await expect(page.get_by_role("dialog").get_by_role("listitem")).to_have_text([
        "Default: demo-1 → demo-2", "Weight of demo-1: 0 % → 87.5 %",
        "Weight of demo-2: 0 % → 12.5 %", "Shadow: off → 2.5 % to demo-1",
    ])  # fmt: skip
    await page.keyboard.press("Escape")
    assert await routing(served) == before

    await page.get_by_role("button", name="Review the change").click()
    await confirm(page)
    await expect(page.locator("#traffic-notice")).to_have_text("The routing is changed.")
    after = await routing(served)
    assert after["default"] == "demo-2"
    assert after["weights"] == {"demo-1": 0.875, "demo-2": 0.125}
    assert after["shadow"] == {"version": "demo-1", "share": 0.025}
    await expect(latest(page)).to_contain_text("admin/ada")
    await expect(latest(page)).to_contain_text("Routing changed")
    await expect(latest(page)).to_contain_text("weights: none → demo-1 0.875, demo-2 0.125")


async def test_a_change_on_top_of_somebody_elses_is_not_made(both: Both) -> None:
    served, console, page = await as_admin(both)
    console.expect_complaints("status of 412")
    await page.select_option("#routing-shadow", "demo-2")
    await page.fill("#routing-shadow-share", "7")
    theirs: dict[str, Any] = {"default": "demo-2", "weights": {}, "salt": "theirs", "shadow": None}
    await served.call("PUT", "/routing", json=theirs, headers={"if-match": "*"})
    await page.get_by_role("button", name="Review the change").click()
    await confirm(page)
    await expect(page.locator("#traffic-notice")).to_contain_text("Somebody else has changed")
    await expect(page.locator("#routing-default")).to_have_value("demo-2")
    await expect(page.locator("#routing-shadow")).to_have_value("")
    assert (await routing(served))["salt"] == "theirs"


@pytest.mark.parametrize(("where", "field"), [("all", "kill"), ("here", "local_kill")])
async def test_the_emergency_switch_goes_on_and_off(both: Both, where: str, field: str) -> None:
    served, _, page = await as_admin(both)
    card = page.locator("#traffic-kill")
    await page.get_by_role("button", name="Stop rewriting").click()
    await page.check(f"dialog input[value={where}]")
    await page.click("dialog button[type=submit]")  # a reason is required
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.fill("#kill-reason", "drops <b>brands</b>")
    await confirm(page)
    await expect(card).to_contain_text("no rewrites at all Reason: drops <b>brands</b>")
    assert (await routing(served))[field] == {"version": None, "reason": "drops <b>brands</b>"}
    await expect(latest(page)).to_contain_text("mergency switch on")
    await page.get_by_role("button", name="End it").click()
    await confirm(page)
    await expect(card.locator(".pill")).to_have_text("off")
    assert (await routing(served))[field] is None
    await expect(latest(page)).to_contain_text("mergency switch off")


async def test_a_version_is_loaded_and_unloaded(both: Both) -> None:
    served, _, page = await as_admin(both)
    row = page.locator("#traffic-versions tbody tr", has_text="demo-3")
    await expect(page.get_by_role("button", name="Unload demo-1")).to_have_count(0)
    await page.get_by_role("button", name="Load demo-3", exact=True).click()
    await confirm(page)
    await expect(row.locator(".pill")).to_have_text("ready")
    assert served.engines.count("demo-3") == 1
    await expect(latest(page)).to_contain_text("Version loaded")
    await page.get_by_role("button", name="Unload demo-3").click()
    await confirm(page)
    await expect(row.locator(".pill")).to_have_text("available")
    await expect(latest(page)).to_contain_text("Version unloaded")


async def test_a_wrong_key_changes_nothing_and_is_told(both: Both) -> None:
    served, console = await both(admin_key=ADMIN_KEY)
    console.expect_complaints("status of 401")
    page = await console.open("traffic")
    await page.locator("#traffic-audit").get_by_role("button", name="Enter a key").click()
    await page.fill("#key-input", "not the key")
    await page.click("dialog button[type=submit]")
    await expect(page.get_by_role("dialog")).to_be_visible()  # no key has blanks
    await page.fill("#key-input", "wrong-horse-battery-staple")
    await confirm(page)
    await page.get_by_role("button", name="Stop rewriting").click()
    await page.fill("#kill-reason", "a try")
    await confirm(page)
    await expect(page.locator("#traffic-notice")).to_contain_text("A valid key is needed")
    assert (await routing(served))["kill"] is None

    await console.use_key(ADMIN_KEY)
    await expect(page.locator("#traffic-audit tbody tr")).to_have_count(1)
    kept = await page.evaluate(
        "[...Object.values({...localStorage, ...sessionStorage}), document.cookie, location.href,"
        " document.documentElement.outerHTML].join()"
    )
    assert ADMIN_KEY not in kept
    await page.reload()
    await expect(page.locator("#key-button")).to_have_text("Key: none")
