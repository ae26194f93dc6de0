"""A wall clock that jumps by a day, and a process that stands still for some seconds.

What lives by the wall clock are ages of cache entries, which travel between machines. Deadlines,
limits and everything that is waited for are on the monotonic clock, and must not notice.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.cache.lifetimes import Lifetimes
from service.config.settings import Settings
from tests.chaos.scrape import total
from tests.chaos.traffic import DEADLINE_MS, asking, endless
from tests.support.engine import ScriptedEngine
from tests.support.redis_server import RedisServer
from tests.support.scripted_process import PATIENCE_S, ScriptedProcess
from tests.support.service import Serve, Service
from tests.support.waiting import until, wait_until

DAY_S = 24 * 3600.0
GENEROUS = {"redis_read_budget_ms": 2000, "redis_write_budget_ms": 2000}
"""Budgets that a busy machine keeps."""
WORK_S = 0.5
STALL_S = 2.0
"""A second without a sign of life, and an engine is suspected; after this, it is replaced."""
PAUSE_S = 3.0
"""Taken for working time, this would be a stall."""


class WallClock:
    """The time of day of this process, as somebody sets it.

    Attributes:
        ahead_s: seconds by which it is ahead of the real one.
    """

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._real = time.time

    def __call__(self) -> float:
        return self._real() + self.ahead_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[WallClock]:
    """The clock of all services that are started after it."""
    wall = WallClock()
    of = Lifetimes.of

    def on_this_clock(settings: Settings) -> Lifetimes:
        return replace(of(settings), clock=wall)

    # The rules of age hold on to their clock; everything else asks for it anew.
    monkeypatch.setattr(Lifetimes, "of", on_this_clock)
    monkeypatch.setattr(time, "time", wall)
    yield wall
    wall.ahead_s = 0.0


async def source(service: Service, query: str = "steele stake") -> str:
    """Where the answer came from; it must be a good one."""
    answer = await service.rewrite(query, deadline_ms=DEADLINE_MS)
    assert answer["status"] == "ok", answer
    await service.idle()
    return str(answer["source"])


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_traffic_goes_on_through_a_jump(serve: Serve, wall: WallClock, jump_s: float) -> None:
    service = await serve()
    kinds = {"hit": lambda: "steele stake", "miss": endless("rare {}")}
    async with asking(service.client, kinds) as traffic:
        await traffic.more()
        for ahead_s in (jump_s, 0.0, -jump_s):
            wall.ahead_s = ahead_s
            await traffic.more()
    assert (await service.client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_who_waits_for_the_engine_goes_on_waiting_through_a_jump(
    serve: Serve, wall: WallClock, jump_s: float
) -> None:
    engine = ScriptedEngine(held=True)
    service = await serve(engine, engine_stall_s=3600)
    waiting = [
        asyncio.create_task(service.rewrite(query, deadline_ms=DEADLINE_MS))
        for query in ("steele stake", "steele stake", "iron stake")
    ]
    await until(lambda: len(engine.generated) == 2)
    wall.ahead_s = jump_s
    assert (await service.client.get("/readyz")).status_code == 200
    # A request of its own deadline, to let the loop look at all deadlines.
    late = await service.rewrite("brass stake", deadline_ms=20)
    assert late["status"] in ("timeout", "partial")
    assert not any(task.done() for task in waiting)
    engine.release()
    answers = await asyncio.gather(*waiting)
    assert [answer["status"] for answer in answers] == ["ok"] * 3
    assert sorted(answer["source"] for answer in answers) == ["coalesced", "engine", "engine"]


async def test_entries_that_are_suddenly_old_are_made_anew(serve: Serve, wall: WallClock) -> None:
    service = await serve(cache_ttl_s=DAY_S, cache_soft_ttl_s=DAY_S / 4, cache_ttl_jitter=0.0)
    assert await source(service) == "engine"
    wall.ahead_s = DAY_S / 2
    # Old, and not too old: served, and made anew behind it.
    assert await source(service) == "memory"
    assert service.engine.generated == ["steele stake"] * 2
    wall.ahead_s = 2 * DAY_S
    assert await source(service) == "engine"
    assert service.engine.generated == ["steele stake"] * 3
    assert await source(service) == "memory"


async def test_entries_from_the_future_are_served_until_they_are_old(
    serve: Serve, wall: WallClock
) -> None:
    service = await serve(cache_ttl_s=DAY_S, cache_ttl_jitter=0.0)
    assert await source(service) == "engine"
    wall.ahead_s = -DAY_S
    assert await source(service) == "memory"
    wall.ahead_s = DAY_S
    assert await source(service) == "engine"


@pytest.mark.integration
@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_a_replica_whose_clock_is_off_serves_and_spoils_nothing_for_the_others(
    server: RedisServer, serve: Serve, wall: WallClock, jump_s: float
) -> None:
    options = {"cache_ttl_s": DAY_S, "cache_ttl_jitter": 0.0, "redis_url": server.url, **GENEROUS}
    here = await serve(**options)
    # The clock is that of all services here: what counts is when each of them looks at it.
    wall.ahead_s = jump_s
    assert await source(here) == "engine"
    wall.ahead_s = 0.0
    there = await serve(**options)
    found = await source(there)
    # Made tomorrow counts as made now; made yesterday is gone.
    assert found == ("redis" if jump_s > 0 else "engine")
    assert await source(there) == "memory"
    with server.client() as client:
        assert all(0 < client.pttl(key) <= 1000 * DAY_S for key in client.keys("requery:*:*"))


@pytest.mark.integration
def test_a_process_that_stood_still_goes_on_and_takes_nothing_for_hung() -> None:
    with (
        ScriptedProcess(
            "--delay-ms", str(1000 * WORK_S), engine_stall_s=STALL_S,
            default_deadline_ms=DEADLINE_MS, admission_target_ms=DEADLINE_MS,
        ) as process,
        httpx.Client(base_url=process.url, timeout=PATIENCE_S) as http,
        ThreadPoolExecutor() as threads,
    ):  # fmt: skip
        new = endless("stake {}")
        assert ask(http, "steele stake") == ("ok", "engine")
        while True:
            under_way = threads.submit(ask, http, new())
            wait_until(
                lambda: (
                    under_way.done()  # noqa: B023 - called in this round
                    or bool(total(http, "requery_generations_in_flight"))
                )
            )
            process.tell(signal.SIGSTOP)
            wait_until(lambda: state_of(process.pid) == "T")
            if not under_way.done():
                break
            # It stopped too late to say anything.
            process.tell(signal.SIGCONT)
        time.sleep(PAUSE_S)  # the pause is what is tested
        process.tell(signal.SIGCONT)
        assert under_way.result(PATIENCE_S) == ("ok", "engine")
        assert http.get("/readyz").status_code == 200
        assert ask(http, "steele stake") == ("ok", "memory")
        assert ask(http, "iron stake") == ("ok", "engine")
        assert [line for line in process.events if line["level"] in ("warning", "error")] == []
        assert len(process.named("version_ready")) == 1


def ask(http: httpx.Client, query: str) -> tuple[str, str]:
    """Status and source of an answer."""
    response = http.post("/rewrite", json={"query": query})
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["status"], answer["source"]


def state_of(pid: int) -> str:
    """The letter that the kernel has for the state of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
