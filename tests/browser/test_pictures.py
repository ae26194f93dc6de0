"""The pictures of the documentation, taken of the real page with made-up traffic.

``make screenshots`` writes all of them to ``docs/images``; else one is made and thrown away.
What changes from run to run (times, ids, ports, latencies) is replaced on its way to the page.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, Route, expect
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.filtering.candidates import Judged, Selection, Verdict
from service.pipeline.answer import Answer
from service.pipeline.metrics import PipelineMetrics
from service.telemetry.registry import service_registry
from tests.browser.browser import Scheme, watched
from tests.browser.served import Served, serving

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

# Read before the tests, which see no REQUERY_* variable of whoever runs them.
_ALL = os.environ.get("REQUERY_SCREENSHOTS") == "1"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
URL = "http://localhost:8000"
_TIME = re.compile(r"202\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
_TIMING = (
    "prepare;dur=0.31, cache;dur=0.12, admit;dur=0.05, generate;dur=41.90, filter;dur=0.84, "
    "total;dur=43.60"
)
_CLOCK = """
  const ask = fetch;
  let now = 0;
  performance.now = () => now;
  window.fetch = async (to, options) => {
    const answer = await ask(to, options);
    if (to === "rewrite") now += 46.2;
    return answer;
  };
"""
"""Lets each answer take the page equally long."""
_GB = 10**9


async def try_tab(page: Page, _served: Served) -> None:
    await page.goto(f"{URL}/#try?q=steele+stake&max=3")
    await expect(page.locator(".waterfall")).to_be_visible()
    await page.locator("#try-options").evaluate("options => { options.open = false }")


async def compare_tab(page: Page, _served: Served) -> None:
    await page.goto(f"{URL}/#compare")
    await expect(page.locator("#compare-b")).to_have_value("demo-2")
    await page.fill("#compare-queries", "steele stake\noutdoor rug\n2x4 lumber 8 ft")
    await page.click("#compare-submit")
    await expect(page.locator(".pair")).to_have_count(3)


async def traffic_tab(page: Page, served: Served) -> None:
    plan = {
        "default": "demo-1", "weights": {"demo-1": 0.9, "demo-2": 0.1}, "salt": "autumn",
        "shadow": None,
    }  # fmt: skip
    headers = {"if-match": "*", "x-requery-author": "ada"}
    await served.call("PUT", "/routing", json=plan, headers=headers)
    await page.goto(f"{URL}/#traffic")
    await expect(page.locator("#traffic-audit tbody tr")).to_have_count(2)


async def overrides_tab(page: Page, served: Served) -> None:
    headers = {"x-requery-author": "ada"}
    for entry in (
        {"kind": "pin", "id": "a", "query": "steele stake", "rewrites": ["steel stake"],
         "reason": "a common typo"},
        {"kind": "block_term", "id": "b", "term": "refurbished", "reason": "we sell none"},
        {"kind": "block_query", "id": "c", "query": "gift card", "reason": "has a page of its own",
         "expires_at": "2040-01-31T18:00:00Z"},
    ):  # fmt: skip
        await served.call("POST", "/overrides", json=entry, headers=headers)
    await page.goto(f"{URL}/#overrides")
    await expect(page.locator("#override-list tbody tr")).to_have_count(3)


async def health_tab(page: Page, _served: Served) -> None:
    source = random.Random(5)
    registry = service_registry("0.1.0")
    metrics = PipelineMetrics(registry)
    for name in ("demo-1", "demo-2"):
        metrics.watch_engine(name, lambda: True)
    readings = 0

    one = Selection((Judged("steel stake", 0.98, Verdict.ACCEPTED, None),), ())

    async def give(route: Route) -> None:
        nonlocal readings
        readings += 1
        slow = 1.0 + 0.8 * (60 <= readings <= 80)
        for _ in range(source.randrange(60, 80)):
            hit = source.random() < min(0.75, readings / 100)
            seconds = source.lognormvariate(-6.2, 0.4) if hit else source.gauss(0.045, 0.012) * slow
            answer = Answer("steel stake", "demo-1", one, "ok", "memory" if hit else "engine")
            metrics.answered(answer, seconds=max(0.001, seconds), stages={})
        text = generate_latest(registry)
        # Memory is this test's own: it is none of the picture's.
        shown = re.sub(rb"(?m)^(requery_process_resident_memory_bytes) .*", rb"\1 1.87e+08", text)
        await route.fulfill(body=shown, content_type=CONTENT_TYPE_LATEST)

    await page.clock.install(time="2026-01-15T09:30:00Z")
    await page.clock.pause_at("2026-01-15T09:31:00Z")
    await page.route("**/metrics", give)
    await page.goto(f"{URL}/#health")
    for i in range(100):  # the first reading is no point yet
        await page.clock.run_for(2000)
        await expect(page.locator("#health-charts")).to_have_attribute("data-points", str(i))


Prepare = Callable[[Page, Served], Awaitable[None]]
PICTURES: dict[str, tuple[Prepare, Scheme]] = {
    "console-try": (try_tab, "light"),
    "console-try-dark": (try_tab, "dark"),
    "console-compare": (compare_tab, "light"),
    "console-traffic": (traffic_tab, "light"),
    "console-health": (health_tab, "light"),
    "console-overrides": (overrides_tab, "light"),
}


def steady(value: Any) -> Any:
    """An answer of the service without what is different each time."""
    if isinstance(value, list):
        return [steady(one) for one in value]
    if not isinstance(value, dict):
        return _TIME.sub("2026-01-15T09:30:00Z", value) if isinstance(value, str) else value
    value = {name: steady(one) for name, one in value.items()}
    fixed = {
        "request_id": "3f9c1ab27d5e4c0899b1c2d3e4f5a6b7", "replica": None, "requests": 1204,
        "latency_ms": {"p50": 41.2, "p95": 78.9}, "in_flight": 0, "memory_bytes": 1.3 * _GB,
        "reserved_bytes": 2.6 * _GB, "limit_bytes": 8 * _GB,
    }  # fmt: skip
    idle = value.get("state") == "available"
    spared = {"requests": 0, "latency_ms": None} if idle else {}
    return {name: (fixed | spared).get(name, one) for name, one in value.items()}


async def take(browser: Browser, name: str, path: Path) -> None:
    """Write one picture."""
    prepare, scheme = PICTURES[name]
    async with (
        serving() as served,
        watched(browser, URL, scheme=scheme, width=1080, height=720) as seen,
    ):
        page = seen.page

        async def pass_on(route: Route) -> None:
            to = urlsplit(route.request.url)
            response = await route.fetch(url=f"{served.url}{to.path}?{to.query}")
            headers = response.headers
            if headers.get("content-type") != "application/json":
                await route.fulfill(response=response)
                return
            if to.path == "/rewrite":
                headers["server-timing"] = _TIMING
            body = json.dumps(steady(await response.json()))
            await route.fulfill(response=response, headers=headers, body=body)

        await page.route(f"{URL}/**", pass_on)
        await page.add_init_script(_CLOCK)
        await prepare(page, served)
        await expect(page.locator("#service-state")).to_have_text("ready · demo-1")
        await page.evaluate("document.activeElement.blur()")
        await page.mouse.move(0, 0)
        await page.screenshot(path=path, full_page=True)
        assert not seen.complaints


async def test_a_picture_can_be_made(browser: Browser, tmp_path: Path) -> None:
    await take(browser, "console-try", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not _ALL, reason="only 'make screenshots' writes to docs/images")
@pytest.mark.parametrize("name", PICTURES)
async def test_the_pictures_of_the_documentation_are_made(browser: Browser, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    await take(browser, name, IMAGES / f"{name}.png")
