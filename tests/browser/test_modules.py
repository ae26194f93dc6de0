"""The console's modules by themselves, imported in the page."""

from __future__ import annotations

import csv
import io
import math
import random
from typing import Any

import pytest
from playwright.async_api import Page
from prometheus_client.parser import text_string_to_metric_families

from tests.browser.conftest import Both

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def js(page: Page, module: str, code: str, given: Any = None) -> Any:
    """The value of ``code``, which sees the module as ``m`` and ``given`` as ``x``."""
    return await page.evaluate(
        f"async (x) => {{ const m = await import('/console/js/{module}.js'); return {code}; }}",
        given,
    )


async def test_the_metrics_are_read_as_prometheus_reads_them(both: Both) -> None:
    served, console = await both()
    page = await console.open()
    await served.ask("steele stake", "outdoor rug", "outdoor rug")
    text = (await served.call("GET", "/metrics")).text
    text += 'odd_total{a="q\\"uote, {x=\\"1\\"}",b="back\\\\slash\\nline",} 1.5e3 1700000000000\n'
    read = await js(
        page,
        "prometheus",
        "[...m.parse(x)].flatMap(([n, s]) => s.map(o => [n, o.labels, String(o.value)]))",
        text,
    )
    expected = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    found = {
        (name, frozenset(labels.items())): float(value.replace("Infinity", "inf"))
        for name, labels, value in read
    }
    assert found.keys() == expected.keys()
    assert len(found) > 200
    for key, value in expected.items():
        assert found[key] == value or (math.isnan(found[key]) and math.isnan(value)), key


async def test_quantiles_are_those_of_promql(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    source = random.Random(7)
    cases: list[tuple[float, list[tuple[float, int]], float | None]] = [
        (0.5, [], None),
        (0.5, [(1, 0), (math.inf, 0)], None),
        (0.5, [(1, 10), (math.inf, 10)], 0.5),
        (0.99, [(1, 10), (2, 10), (math.inf, 20)], 2),  # over the highest finite bound
        (0.5, [(math.inf, 4)], None),
        (1, [(1, 0), (2, 8), (4, 8), (math.inf, 8)], 2),
        (0.25, [(1, 0), (2, 8), (4, 8), (math.inf, 8)], 1.25),
    ]
    for _ in range(50):
        counts = sorted(source.randrange(1, 100) for _ in range(4))
        bounds = [0.1, 0.5, 2.0, math.inf]
        cases.append(((q := source.random()), list(zip(bounds, counts, strict=True)), None))
        cases[-1] = (q, cases[-1][1], _quantile(q, cases[-1][1]))
    given = [[q, [{"le": str(le), "count": n} for le, n in b]] for q, b, _ in cases]
    found = await js(
        page,
        "prometheus",
        "x.map(([q, b]) => m.quantile(q, b.map(o => "
        "({le: o.le === 'inf' ? Infinity : Number(o.le), count: o.count}))))",
        given,
    )
    assert found == [None if e is None else pytest.approx(e) for *_, e in cases]


def _quantile(q: float, buckets: list[tuple[float, int]]) -> float:
    """The documented rule of PromQL's histogram_quantile, the long way round."""
    rank = q * buckets[-1][1]
    low, below = 0.0, 0
    for le, count in buckets:
        if count >= rank:
            if le == math.inf:
                return low
            return low + (le - low) * (rank - below) / (count - below) if count > below else le
        low, below = le, count
    raise AssertionError


async def test_a_process_that_starts_anew_counts_from_nothing(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    grown = "[m.increase(7, 5), m.increase(3, 5), m.increase(4, null), m.increase(null, 4)]"
    assert await js(page, "prometheus", grown) == [2, 3, 4, 0]
    before, now = "[{le: 1, count: 4}, {le: 2, count: 6}]", "[{le: 1, count: x}, {le: 2, count: 9}]"
    buckets = f"m.bucketIncrease({now}, {before})"
    assert await js(page, "prometheus", buckets, 5) == [
        {"le": 1, "count": 1},
        {"le": 2, "count": 3},
    ]
    fresh = "m.bucketIncrease([{le: 1, count: 2}], [{le: 1, count: 6}])"
    assert await js(page, "prometheus", fresh) == [{"le": 1, "count": 2}]


async def test_cells_come_back_as_they_were_and_formulas_as_text(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    plain = ['a "quoted" b', "one, two", "line\nbreak", "é ü 中", "", "a=b", "2x4", "'"]
    formulas = ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\tx", "\rx", "\N{FULLWIDTH EQUALS SIGN}1"]
    numbers = [1, 0.25, -3]
    text = await js(page, "csv", "m.csv([x])", [*plain, *formulas, *numbers, None])
    (row,) = csv.reader(io.StringIO(text, newline=""))
    assert row == [*plain, *(f"'{one}" for one in formulas), "1", "0.25", "-3", ""]


async def test_shares_always_sum_to_the_whole(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    assert await js(page, "shares", "m.rebalance([500, 500], 0, 900)") == [900, 100]
    assert await js(page, "shares", "m.rebalance([1000, 0, 0], 0, 0)") == [0, 500, 500]
    assert await js(page, "shares", "m.rebalance([700], 0, 3)") == [1000]
    assert await js(page, "shares", "m.tenths([1 / 3, 1 / 3, 1 / 3])") == [334, 333, 333]
    source = random.Random(11)
    cases: list[tuple[list[int], int]] = [
        (
            [source.randrange(1001) for _ in range(source.randrange(2, 8))],
            source.randrange(-50, 1100),
        )
        for _ in range(100)
    ]
    found = await js(page, "shares", "x.map(([s, v]) => m.rebalance(s, 1, v))", cases)
    for (_, value), shares in zip(cases, found, strict=True):
        assert sum(shares) == 1000
        assert shares[1] == min(1000, max(0, value))
        assert min(shares) >= 0


async def test_headers_are_read_as_their_standards_have_it(both: Both) -> None:
    _, console = await both()
    page = await console.open()
    timing = 'cache;desc="x";dur=1.5, miss, total;dur="20.25"'
    assert await js(page, "timing", "m.parseServerTiming(x)", timing) == [
        {"name": "cache", "ms": 1.5}, {"name": "total", "ms": 20.25}
    ]  # fmt: skip
    words = "x.map(h => m.cacheWords(m.parseCacheStatus(h)))"
    headers = [
        "requery; hit; detail=redis",
        "requery; fwd=miss; collapsed",
        "requery; fwd=bypass",
        None,
    ]
    assert await js(page, "timing", words, headers) == [
        "Cache hit (redis)", "Cache miss, joined a generation under way",
        "Override: neither cache nor model was asked", "No cache status",
    ]  # fmt: skip
