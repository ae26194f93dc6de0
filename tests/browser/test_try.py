"""The tab Try: an answer with everything that the service says about it."""

from __future__ import annotations

import json
import shlex

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Both, Start

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
QUERIES = (
    HOSTILE,
    "</script><script>document.title='owned'</script>",
    "חולצה כחולה \N{RIGHT-TO-LEFT OVERRIDE}abc",
    '"',
    "it's a 'test' `id` $(id) \\ %s & #fragment?x=1+1",
    "w" * 256,
)


async def rewrite(page: Page, query: str) -> None:
    """Ask, and wait for the answer (or the error) to this query."""
    await page.fill("#try-query", query)
    await page.press("#try-query", "Enter")
    await expect(page.get_by_role("group", name="curl line")).to_contain_text("curl -s")
    await expect(page.locator("#try-result")).not_to_have_attribute("aria-busy", "true")


def sent(line: str) -> tuple[str, dict[str, object]]:
    """Address and body of a curl line, as a shell reads it."""
    words = shlex.split(line)
    assert words[:2] == ["curl", "-s"]
    return words[2], json.loads(words[words.index("-d") + 1])


async def test_rewrites_rejections_times_and_cache_status_are_shown(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    await rewrite(page, "Steele stake")
    rows = page.get_by_role("region", name="Rewrites").get_by_role("listitem")
    await expect(rows.locator("bdi")).to_have_text(
        ["steel stake", "steel garden stake", "metal stakes"]
    )
    await expect(rows.locator(".number")).to_have_text(
        ["relevance 0.984", "relevance 0.913", "relevance 0.874"]
    )
    widths = await rows.locator(".level").evaluate_all(
        "bars => bars.map(b => b.getBoundingClientRect().width / b.parentNode.clientWidth)"
    )
    assert widths == pytest.approx([0.984, 0.913, 0.874], abs=0.02)
    rejected = page.get_by_role("region", name="Rejected candidates").first.get_by_role("row")
    await expect(rejected).to_contain_text(
        ["Candidate", "Echo: the query again", "Duplicate", "Irrelevant: its relevance is below"]
    )
    stages = page.get_by_role("region", name="Where the time went").get_by_role("listitem")
    for name in ("prepare", "cache", "generate", "filter", "network"):
        await expect(stages.filter(has_text=name).locator(".number")).to_contain_text("ms")
    facts = page.locator(".facts .pill")
    await expect(facts).to_have_text(["ok", "Cache miss", "demo-1"])
    await page.click("#try-submit")
    await expect(facts).to_have_text(["ok", "Cache hit (memory)", "demo-1"])
    await expect(page.locator("#announcer")).to_have_text(
        "3 rewrites, status ok, Cache hit (memory)"
    )


async def test_the_curl_line_does_the_same(both: Both) -> None:
    _, console = await both()
    page = await console.open("try?q=outdoor+rug&max=1&version=demo-2")
    await expect(page.locator(".rewrites li")).to_have_count(1)
    await page.get_by_role("button", name="Copy curl line").click()
    address, body = sent(await page.evaluate("navigator.clipboard.readText()"))
    async with httpx.AsyncClient() as client:
        answer = (await client.post(address, json=body)).json()
    assert answer["model_version"] == "demo-2"
    shown = await page.locator(".rewrites bdi").all_text_contents()
    assert [one["text"] for one in answer["rewrites"]] == shown


async def test_a_link_brings_back_the_query_and_its_options(both: Both, start: Start) -> None:
    served, console = await both()
    page = await console.open()
    await expect(page.locator("#try-version option")).to_have_count(4)
    await page.click("#try-options summary")
    await page.select_option("#try-version", "demo-2")
    options = {"max": "2", "min": "0.93", "deadline": "9000", "unit": "a&b=c d"}
    for name, value in options.items():
        await page.fill(f"#try-{name}", value)
    await rewrite(page, "steele stake")
    await page.get_by_role("button", name="Copy link").click()
    link = await page.evaluate("navigator.clipboard.readText()")

    other = (await start.page(served)).page
    await other.goto(link)
    await expect(other.locator(".rewrites bdi")).to_have_text(
        ["steel stake", "steel landscape stake"]
    )
    await expect(other.locator("#try-query")).to_have_value("steele stake")
    await expect(other.locator("#try-version")).to_have_value("demo-2")
    for name, value in options.items():
        await expect(other.locator(f"#try-{name}")).to_have_value(value)


async def test_a_late_answer_and_a_wrong_version_are_explained(both: Both) -> None:
    served, console = await both()
    served.engines["demo-1"].held_from = 0
    served.engines["demo-1"].hold()
    page = await console.open("try?q=wood+post&deadline=20")
    await expect(page.locator(".facts .pill").first).to_have_text("timeout")
    await expect(page.locator(".advice")).to_contain_text("allow a longer deadline")
    served.engines["demo-1"].release()
    console.expect_complaints("status of 404", "status of 422")
    await page.goto(f"{served.url}/#try?q=a&version=demo-9")
    await expect(page.get_by_role("alert")).to_contain_text("No such model version")
    await page.select_option("#try-version", "")
    await rewrite(page, " ")
    await expect(page.get_by_role("alert")).to_contain_text("query: ")


async def test_whatever_is_asked_is_shown_as_text(both: Both) -> None:
    served, console = await both()
    served.engines["demo-1"].default = [
        (HOSTILE, 0.99),
        ("<b>bold</b> \N{RIGHT-TO-LEFT OVERRIDE}x", 0.9),
    ]
    page = await console.open()
    for query in QUERIES:
        await rewrite(page, query)
        line = await page.get_by_role("group", name="curl line").text_content()
        assert sent(line or "")[1]["query"] == query
        normal = (await served.client.post("/rewrite", json={"query": query})).json()["query"]
        await expect(page.locator("#try-result q bdi")).to_have_text(normal)
        assert await page.locator("#try-result :is(img, script, b)").count() == 0
    assert await page.title() == "Try · Requery console"
    assert HOSTILE in await page.locator("#try-result bdi").all_text_contents()


async def test_a_query_that_is_too_long_is_refused_in_words(both: Both) -> None:
    _, console = await both()
    console.expect_complaints("status of 422")
    page = await console.open()
    await rewrite(page, "long " * 2000)
    await expect(page.get_by_role("alert")).to_contain_text("query: ")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 1180


async def test_the_keyboard_is_enough(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    await expect(page.locator("#try-query")).to_be_focused()
    await page.keyboard.type("steele stake")
    await page.keyboard.press("Enter")
    await expect(page.locator(".rewrites li")).to_have_count(3)
    for _ in range(2):  # past the button
        await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    for _ in range(2):
        await page.keyboard.press("Tab")
    await expect(page.locator("#try-max")).to_be_focused()
    await page.keyboard.type("1")
    await page.keyboard.press("Enter")
    await expect(page.locator(".rewrites li")).to_have_count(1)

    await page.locator("#tab-try").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("#tab-compare")).to_be_focused()
    await expect(page.get_by_role("tabpanel")).to_have_attribute("id", "panel-compare")
    await page.keyboard.press("End")
    await expect(page.get_by_role("tab", selected=True)).to_have_text("Overrides")
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("tab", selected=True)).to_have_text("Try")
    await expect(page.locator("#try-query")).to_have_value("steele stake")
