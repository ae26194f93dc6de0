"""The tab Health: what two readings of the metrics say, and when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, Request, Route, expect
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.filtering.candidates import Judged, Selection, Verdict
from service.pipeline.answer import Answer, Source, Status
from service.pipeline.metrics import PipelineMetrics
from service.security.api_keys import digest_of, new_key
from service.telemetry.registry import service_registry
from tests.browser.conftest import Both

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


class Canned:
    """Metrics as the service writes them, of traffic that the test makes up."""

    def __init__(self) -> None:
        self.registry = service_registry("1.2.3")
        self.metrics = PipelineMetrics(self.registry)
        self.metrics.watch_engine("demo-1", lambda: True)
        self.readings = 0

    def answered(self, n: int, seconds: float, source: Source, status: Status = "ok") -> None:
        one = Selection((Judged("steel stake", 0.98, Verdict.ACCEPTED, None),), ())
        for _ in range(n):
            answer = Answer("steel stake", "demo-1", one, status, source)
            self.metrics.answered(answer, seconds=seconds, stages={})

    async def give(self, route: Route) -> None:
        self.readings += 1
        text = generate_latest(self.registry)
        await route.fulfill(body=text, content_type=CONTENT_TYPE_LATEST)


def whole(page: Page, name: str) -> Locator:
    return page.locator(".tile", has=page.get_by_text(name, exact=True))


async def tile(page: Page, name: str, value: str) -> None:
    await expect(whole(page, name).locator("dd").first).to_have_text(value)


async def test_what_is_shown_is_of_the_time_between_two_readings(both: Both) -> None:
    _, console = await both()
    canned = Canned()
    canned.answered(1000, 4.0, "engine")  # before anybody looked
    await console.page.route("**/metrics", canned.give)
    await console.page.clock.install()
    page = await console.open("health")
    await tile(page, "p50", "–")
    await expect(whole(page, "Requests")).to_contain_text("1,000 since the start")
    await tile(page, "Engines", "1 of 1 up")
    canned.answered(60, 0.0025, "memory")
    canned.answered(20, 0.09, "engine")
    canned.answered(20, 0.09, "coalesced", status="fallback")
    await page.clock.run_for(2000)
    # 60 of 100 are in the bucket from 2 to 3 ms: the 50th is at 2 + 50/60.
    await tile(page, "p50", "2.83 ms")
    # The 95th is number 35 of the 40 from 75 to 100 ms.
    await tile(page, "p95", "96.9 ms")
    await tile(page, "Cache hits", "60 %")
    await tile(page, "Requests", "50/s")
    await tile(page, "Fallback", "10/s")
    await expect(page.get_by_role("img", name="Latency of /rewrite")).to_have_attribute(
        "aria-label", "Latency of /rewrite; now: p50 2.83 ms, p95 96.9 ms, p99 99.4 ms"
    )
    for _ in range(6):  # more than what a point looks back on
        before = canned.readings
        await page.clock.run_for(2000)
        await expect(page.locator("#health-state")).to_contain_text("Read every 2 s")
        while canned.readings == before:
            await page.wait_for_timeout(10)
    await tile(page, "p50", "–")
    await tile(page, "Requests", "0/s")


async def test_nothing_is_read_while_nobody_looks(both: Both) -> None:
    _, console = await both()
    canned = Canned()
    await console.page.route("**/metrics", canned.give)
    await console.page.clock.install()
    page = await console.open("health")
    await expect(page.locator("#health-state")).to_contain_text("Read every 2 s")
    others: list[str] = []

    def note(request: Request) -> None:
        others.append(request.url)

    page.on("request", note)
    await page.evaluate(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    await expect(page.locator("#health-state")).to_contain_text("in the background")
    seen = canned.readings
    await page.clock.run_for(60_000)
    assert (canned.readings, others) == (seen, [])
    await page.evaluate(
        "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))"
    )
    await page.clock.run_for(10)
    await expect(page.locator("#health-state")).to_contain_text("Read every 2 s")
    assert canned.readings > seen

    await page.click("#health-pause")
    await expect(page.locator("#health-state")).to_have_text("Paused.")
    seen = canned.readings
    await page.clock.run_for(60_000)
    assert canned.readings == seen


async def test_the_real_metrics_are_understood(both: Both) -> None:
    served, console = await both()
    await served.ask("steele stake", "outdoor rug", "outdoor rug")
    page = await console.open("health")
    await expect(whole(page, "Requests")).to_contain_text("3 since the start")
    await tile(page, "Engines", "2 of 3 up")
    await expect(whole(page, "Engines")).to_contain_text("not up: demo-3")
    await expect(page.locator("#health-version option")).to_have_text(
        ["all", "demo-1", "demo-2", "demo-3"]
    )
    await page.select_option("#health-version", "demo-2")
    await expect(whole(page, "Requests")).to_contain_text("0 since the start")


async def test_a_key_with_the_scope_opens_the_metrics(both: Both, tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("admin", "metrics", "rewrite")}
    entries = [
        {"name": f"key-{name}", "sha256": digest_of(key.encode()).hex(), "scopes": [name]}
        for name, key in keys.items()
    ]
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    _, console = await both(api_keys_file=tmp_path / "keys.json", key=keys["admin"])
    console.expect_complaints("status of 401", "status of 403")
    page = await console.open("health")
    notice = page.locator("#health-notice")
    await expect(notice).to_contain_text("A valid key is needed")
    await console.use_key(keys["rewrite"])
    await expect(notice).to_contain_text("the scope 'metrics'")
    await notice.get_by_role("button", name="Enter a key").click()
    await page.fill("#key-input", keys["metrics"])
    await page.click("dialog button[type=submit]")
    await expect(notice).to_be_empty()
    await tile(page, "Engines", "2 of 3 up")
