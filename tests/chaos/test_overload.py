"""Far more to do than can be done: those who are answered are answered well, the rest at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.chaos.scrape import scrape, total
from tests.chaos.traffic import DEADLINE_MS, numbered
from tests.support.engine import ScriptedEngine
from tests.support.raw_http import Caller, rewrite_request
from tests.support.scripted_process import PATIENCE_S, ScriptedProcess
from tests.support.service import Serve
from tests.support.waiting import until, wait_until

CACHED = [numbered("known {}", i) for i in range(5)]
BURST = 150
HOUR_MS = "3600000"
PATIENT: dict[str, Any] = {
    "default_deadline_ms": DEADLINE_MS,
    "admission_target_ms": DEADLINE_MS,
    "engine_stall_s": 3600,
}
"""However slow the machine is, no answer is late, no limit falls, and no engine is suspected."""


def outcome(status: int, headers: Mapping[str, str], content: dict[str, Any]) -> str:
    """What a caller got: a good answer, or a refusal that says what it must."""
    if status == 200:
        return f"{content['status']} from {content['source']}"
    assert status == 503, content
    assert int(headers["retry-after"]) >= 1
    assert headers["content-type"] == "application/problem+json"
    assert content["type"] == "urn:requery:problem:overloaded"
    assert content["status"] == 503
    return "overloaded"


async def ask(http: httpx.AsyncClient, query: str) -> str:
    """What a caller gets for ``query``."""
    response = await http.post("/rewrite", json={"query": query})
    return outcome(response.status_code, response.headers, response.json())


WAITING = 20


async def test_while_all_places_are_taken_the_cache_answers_and_the_rest_is_refused(
    serve: Serve,
) -> None:
    engine = ScriptedEngine()
    service = await serve(
        engine, admission_max_candidates=16, admission_max_waiting=WAITING, **PATIENT
    )
    http = service.client
    for query in CACHED:
        assert await ask(http, query) == "ok from engine"
    engine.hold()
    first = [asyncio.create_task(ask(http, numbered("new {}", i))) for i in range(BURST)]
    await until(lambda: sum(task.done() for task in first) + engine.outstanding == BURST - WAITING)
    admitted = engine.outstanding + WAITING
    assert 1 <= engine.outstanding <= 4
    assert [await ask(http, query) for query in CACHED] == ["ok from memory"] * len(CACHED)
    # Who asks for what is being made needs no place.
    waiting = numbered("new {}", next(i for i, task in enumerate(first) if not task.done()))
    follower = asyncio.create_task(ask(http, waiting))
    await asyncio.sleep(0)
    assert await ask(http, "one more") == "overloaded"
    engine.release()
    answered = Counter(await asyncio.gather(*first))
    assert answered == {"ok from engine": admitted, "overloaded": BURST - admitted}
    assert await follower == "ok from coalesced"
    assert [await ask(http, numbered("late {}", i)) for i in range(20)] == ["ok from engine"] * 20
    shed = await scrape(http, "requery_shed_total", "kind")
    assert shed["shopper",] == BURST - admitted + 1


@pytest.mark.integration
async def test_a_burst_over_http_gets_answers_and_refusals_and_then_all_is_well() -> None:
    with ScriptedProcess(
        "--delay-ms",
        "300",
        "--slots",
        "8",
        admission_max_candidates=16,
        admission_max_waiting=WAITING,
        **PATIENT,
    ) as process:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=process.url, timeout=PATIENCE_S, limits=limits
        ) as http:
            for query in CACHED:
                assert await ask(http, query) == "ok from engine"
            burst = [ask(http, numbered("new {}", i)) for i in range(BURST)]
            known = [ask(http, query) for query in CACHED * 5]
            outcomes = await asyncio.gather(*burst, *known)
            assert set(outcomes[BURST:]) == {"ok from memory"}
            seen = Counter(outcomes[:BURST])
            assert set(seen) == {"ok from engine", "overloaded"}
            late = [await ask(http, numbered("late {}", i)) for i in range(5)]
            assert late == ["ok from engine"] * 5
        assert [line for line in process.events if line["level"] in ("warning", "error")] == []


@pytest.mark.integration
def test_callers_who_hang_up_free_their_places() -> None:
    with (
        ScriptedProcess(
            "--delay-ms",
            HOUR_MS,
            "--slots",
            "64",
            admission_max_candidates=8,
            admission_max_waiting=0,
            **PATIENT,
        ) as process,
        httpx.Client(base_url=process.url, timeout=PATIENCE_S) as http,
    ):

        def in_flight(n: int) -> None:
            wait_until(lambda: total(http, "requery_generations_in_flight") == n)

        for again in range(1, 4):
            callers = [Caller(process.port, patience_s=PATIENCE_S) for _ in range(2)]
            for i, caller in enumerate(callers):
                caller.send(rewrite_request(numbered("new {}", 10 * again + i)))
            in_flight(2)
            with Caller(process.port, patience_s=PATIENCE_S) as refused:
                answer = refused.ask(rewrite_request("one more"))
                assert outcome(answer.status, answer.headers, answer.json()) == "overloaded"
            for caller in callers:
                caller.close()
            in_flight(0)
            assert total(http, "requery_admission_in_use") == 0
            assert total(http, "requery_hangups_total") == 2 * again
