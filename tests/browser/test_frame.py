"""What all tabs share: the policy, a service that goes away, narrow screens, accessibility."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.browser.browser import Scheme, grave_issues
from tests.browser.conftest import Both, Start
from tests.browser.served import Served

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

LONG = "unbreakable" * 20
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
TABS = ("try", "compare", "traffic", "health", "overrides")


async def furnish(served: Served) -> None:
    """Something to show in every tab."""
    override = {"kind": "pin", "query": LONG, "rewrites": [LONG + "s x"], "reason": LONG}
    await served.call("POST", "/overrides", json=override)
    plan = {
        "default": "demo-1", "weights": {"demo-1": 0.9, "demo-2": 0.1}, "salt": "s",
        "shadow": {"version": "demo-2", "share": 0.5},
    }  # fmt: skip
    await served.call("PUT", "/routing", json=plan, headers={"if-match": "*"})
    kill = {"version": "demo-2", "reason": LONG}
    await served.call("PUT", "/routing/kill/local", json=kill)
    await served.ask("steele stake", model_version="demo-1")


async def fill_in(page: Page, tab: str, url: str) -> None:
    """Bring a tab to show what it can."""
    await page.goto(f"{url}/#{'try?q=steele+stake' if tab == 'try' else tab}")
    match tab:
        case "try":
            await expect(page.locator(".waterfall")).to_be_visible()
            await page.locator("#try-options").evaluate("options => { options.open = true }")
        case "compare":
            await expect(page.locator("#compare-b")).to_have_value("demo-2")
            await page.fill("#compare-queries", f"steele stake\n{LONG}")
            await page.click("#compare-submit")
            await expect(page.locator(".pair")).to_have_count(2)
        case "traffic":
            await expect(page.locator("#traffic-audit tbody tr")).to_have_count(4)
        case "health":
            await expect(
                page.locator(".tile", has=page.get_by_text("Engines", exact=True))
            ).to_contain_text("2 of 3 up")
        case "overrides":
            await page.click("#override-add summary")
            await expect(page.locator("#override-list tbody tr")).to_have_count(1)


async def test_axe_finds_nothing_grave(both: Both) -> None:
    served, console = await both()
    await furnish(served)
    page = console.page
    found = {}

    async def look(place: str) -> None:
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            found[place, scheme] = await grave_issues(page)

    for tab in TABS:
        await fill_in(page, tab, served.url)
        await look(tab)
    await page.goto(f"{served.url}/#traffic")
    await page.get_by_role("button", name="Stop rewriting").click()
    await look("dialog")
    places = [(place, scheme) for place in (*TABS, "dialog") for scheme in SCHEMES]
    assert found == {place: [] for place in places}


async def test_axe_would_find_something(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    await page.evaluate("document.body.append(document.createElement('button'))")
    assert [issue.partition(" ")[0] for issue in await grave_issues(page)] == ["button-name"]


async def test_nothing_is_wider_than_a_narrow_screen(start: Start) -> None:
    served = await start.service()
    await furnish(served)
    console = await start.page(served, width=360)
    widths = {}
    for tab in TABS:
        await fill_in(console.page, tab, served.url)
        widths[tab] = await console.page.evaluate("document.documentElement.scrollWidth")
    assert widths == dict.fromkeys(TABS, 360)


async def test_a_service_that_goes_away_is_told_and_its_return_too(both: Both) -> None:
    served, console = await both()
    console.expect_complaints("ERR_CONNECTION_REFUSED")
    page = await console.open()
    await expect(page.locator("#service-state")).to_have_text("ready · demo-1")
    await served.stop()
    await page.fill("#try-query", "outdoor rug")
    await page.press("#try-query", "Enter")
    await expect(page.locator("#banner")).to_contain_text("The service cannot be reached")
    await expect(page.locator("#try-result")).to_contain_text("goes on by itself once it answers")
    await expect(page.locator("#service-state")).to_have_text("cannot be reached")
    await served.start()
    await expect(page.locator("#banner")).to_be_hidden()
    # What was asked meanwhile is asked again without being told to.
    await expect(page.locator(".rewrites bdi")).to_have_text(["outdoor rug for patio", "vinyl rug"])


async def test_the_browser_refuses_what_the_policy_forbids(both: Both) -> None:
    _, console = await both()
    console.expect_complaints("Content Security Policy", "TrustedHTML")
    page = await console.open()
    refused = await page.evaluate(
        """async () => {
          const refused = [];
          document.addEventListener("securitypolicyviolation",
            (event) => refused.push(event.effectiveDirective));
          const style = document.createElement("style");
          style.textContent = "body { display: none }";
          document.head.append(style);
          document.body.setAttribute("style", "display: none");
          await fetch("https://elsewhere.invalid/").catch(() => {});
          try { document.body.innerHTML = "<b>x</b>"; } catch {}
          await new Promise((resolve) => setTimeout(resolve));
          return refused;
        }"""
    )
    assert set(refused) == {
        "style-src-elem", "style-src-attr", "connect-src", "require-trusted-types-for"
    }  # fmt: skip
    await expect(page.locator("#try-query")).to_be_visible()
    assert console.complaints  # so that other tests would notice


async def test_going_back_goes_to_the_tab_before(both: Both) -> None:
    _, console = await both()
    page = await console.open("try?q=outdoor+rug")
    await page.get_by_role("tab", name="Health").click()
    await page.get_by_role("tab", name="Compare").click()
    await page.go_back()
    await expect(page.get_by_role("tab", selected=True)).to_have_text("Health")
    await page.go_back()
    await expect(page.locator(".rewrites li")).to_have_count(2)
