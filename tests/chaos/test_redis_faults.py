"""Redis in every kind of trouble: shoppers notice nothing, and afterwards all is as before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pytest

from service.cache.keys import cache_key
from service.filtering.candidates import Scored
from service.filtering.generation import Generation
from service.versions.version import ModelVersion
from tests.chaos.proxy import (
    BlackHole,
    Corrupt,
    Delay,
    Fault,
    FaultProxy,
    HalfOpen,
    Pass,
    Refuse,
    Reset,
    Throttle,
)
from tests.chaos.scrape import scrape
from tests.chaos.traffic import Traffic, asking, endless, numbered
from tests.support.engine import ScriptedEngine
from tests.support.redis_cache import entry, open_cache
from tests.support.redis_server import RedisServer
from tests.support.service import Serve, Service
from tests.support.versions import Engines, make_manifest
from tests.support.waiting import until

pytestmark = pytest.mark.integration

OPERATIONS = "requery_cache_operations_total"
TROUBLES = ("error", "timeout", "oom", "corrupt")
BUDGETS = {"redis_read_budget_ms": 400, "redis_write_budget_ms": 1000}
"""Kept by a busy machine, and not by any of the faults."""
PLAN = {"default": "test-1", "weights": {}, "salt": "s"}
GOOD = Generation((Scored("steel stake", 0.98),))
SHARED = 400
"""Queries that Redis has from the start and no service has in memory."""
FAULTS: dict[str, Fault] = {
    "refused": Refuse(),
    "reset": Reset(),
    "reset in the middle of an answer": Reset(after_bytes=3),
    "black-holed": BlackHole(),
    "slow by 500 ms": Delay(0.5),
    "slow by 300 to 800 ms": Delay(0.3, jitter_s=0.5),
    "throttled": Throttle(50),
    "half-open": HalfOpen(),
    "deaf": HalfOpen(closed="requests"),
    "garbled": Corrupt(every=8),
}
ORDINARY = frozenset({"ok"})
eventually = partial(until, poll_s=0.02)

GARBLED = frozenset({"ok", "none"})
"""A relevance with a flipped bit can be too low."""


@dataclass
class Pair:
    """Two services on one Redis: ``near`` by way of the proxy, ``far`` without."""

    near: Service
    far: Service
    proxy: FaultProxy
    server: RedisServer

    def __post_init__(self) -> None:
        self._numbers = count()

    async def share(self) -> None:
        """Wait until what either service generates is found in Redis by the other."""
        for giver, taker in ((self.near, self.far), (self.far, self.near)):
            given: list[str] = []

            async def shares(
                giver: Service = giver, taker: Service = taker, given: list[str] = given
            ) -> bool:
                # An answer is written after it is given: the one before the last is there by now.
                there = given and (await taker.rewrite(given[-1]))["source"] == "redis"
                given.append(numbered("new {}", next(self._numbers)))
                await giver.rewrite(given[-1])
                return bool(there)

            await eventually(shares)


async def replica(serve: Serve, port: int, **options: Any) -> Service:
    """A replica that knows test-1, its default, and other-1."""
    return await serve(
        ScriptedEngine(),
        more_versions=(ModelVersion(make_manifest("other-1")),),
        more_engines=Engines(),
        redis_url=f"redis://127.0.0.1:{port}/0",
        **(BUDGETS | options),
    )


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def pair(server: RedisServer, proxy: FaultProxy, serve: Serve) -> Pair:
    return Pair(await replica(serve, proxy.port), await replica(serve, server.port), proxy, server)


@asynccontextmanager
async def shopping(
    service: Service, server: RedisServer, *, statuses: frozenset[str] = ORDINARY
) -> AsyncIterator[Traffic]:
    """Continuous traffic of hits in memory, hits in Redis (while it has them), and misses."""
    await fill(server)
    kinds = {
        "memory": lambda: "steele stake",
        "shared": endless("shared {}"),
        "miss": endless("rare {}"),
    }
    async with asking(service.client, kinds, statuses=statuses) as traffic:
        yield traffic


async def fill(server: RedisServer) -> None:
    """Put the shared queries into Redis."""
    cache = open_cache(server.url)
    digest = make_manifest().digest
    keys = [cache_key(digest, numbered("shared {}", i)) for i in range(SHARED)]
    await asyncio.gather(*(cache.put(key, entry(GOOD)) for key in keys))
    await cache.close()


async def troubles(service: Service) -> float:
    """Commands to Redis that failed, were late, or answered with nonsense."""
    counted = await scrape(service.client, OPERATIONS, "tier", "op", "result")
    return sum(
        times
        for (tier, op, result), times in counted.items()
        if tier == "redis" and op in ("get", "put") and result in TROUBLES
    )


async def felt(service: Service) -> Callable[[], Awaitable[bool]]:
    """Whether the service has met trouble since now."""
    before = await troubles(service)

    async def more() -> bool:
        return await troubles(service) > before

    return more


async def breaker_is(service: Service, state: str) -> bool:
    """Whether the breaker of Redis is in this state, and in no other."""
    shown = await scrape(service.client, "requery_breaker_state", "name", "state")
    return [is_in for (of, is_in), on in shown.items() if of == "redis" and on] == [state]


async def opened(service: Service) -> bool:
    """Whether the breaker of Redis has ever opened."""
    moved = await scrape(service.client, "requery_breaker_transitions_total", "name", "to")
    return moved["redis", "open"] > 0


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_under_traffic_fails_nothing_and_heals(pair: Pair, name: str) -> None:
    statuses = GARBLED if name == "garbled" else ORDINARY
    async with shopping(pair.near, pair.server, statuses=statuses) as traffic:
        await pair.share()
        await traffic.until_seen("shared", "redis")
        trouble = await felt(pair.near)
        await pair.proxy.switch(FAULTS[name])
        await eventually(trouble)
        if name != "garbled":  # some of it may be readable
            await eventually(lambda: opened(pair.near))
        await traffic.more()
        await pair.proxy.switch(Pass())
        await pair.share()
        await eventually(lambda: breaker_is(pair.near, "closed"))
        await traffic.more()
    assert traffic.sources["memory", "memory"]
    assert traffic.sources["miss", "engine"]


@pytest.mark.parametrize("name", ["refused", "reset", "black-holed", "slow by 500 ms"])
async def test_a_service_that_starts_into_a_fault_serves_and_joins_the_others_after_it(
    server: RedisServer, proxy: FaultProxy, serve: Serve, name: str
) -> None:
    far = await replica(serve, server.port)
    response = await far.client.put("/routing", json=PLAN, headers={"if-match": "*"})
    revision = response.json()["revision"]
    await proxy.switch(FAULTS[name])
    near = await replica(serve, proxy.port)
    pair = Pair(near, far, proxy, server)
    async with shopping(near, server) as traffic:
        await traffic.more()
        await proxy.switch(Pass())
        await pair.share()
        await eventually(lambda: follows(near, revision))
        await traffic.more()


async def test_a_redis_that_comes_back_empty_is_filled_again(pair: Pair) -> None:
    await pair.near.client.post("/versions/other-1/load?wait=true")
    plan = PLAN | {"weights": {"test-1": 1.0, "other-1": 0.0}}
    response = await pair.near.client.put("/routing", json=plan, headers={"if-match": "*"})
    assert response.status_code == 200, response.text
    await eventually(lambda: follows(pair.far, 1))
    async with shopping(pair.near, pair.server) as traffic:
        await pair.share()
        trouble = await felt(pair.near)
        await asyncio.to_thread(pair.server.stop)
        await eventually(trouble)
        await traffic.more()
        await asyncio.to_thread(pair.server.start)
        await pair.share()
        await traffic.more()
    # What operators have decided is in force, though Redis has forgotten it.
    for service in (pair.near, pair.far):
        routing = (await service.client.get("/routing")).json()
        assert routing["weights"] == plan["weights"]


async def test_a_redis_out_of_memory_still_gives_what_it_has(pair: Pair) -> None:
    async with shopping(pair.near, pair.server) as traffic:
        await pair.share()
        trouble = await felt(pair.near)
        with pair.server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")
        await eventually(trouble)
        await traffic.until_seen("shared", "redis")
        await traffic.more()
        with pair.server.client() as client:
            client.config_set("maxmemory", "0")
        await pair.share()
        await traffic.more()


async def follows(service: Service, revision: int) -> bool:
    """Whether the service has taken over that revision of the routing document, or a later one."""
    shown = (await service.client.get("/routing")).json()
    return bool(shown["revision"] >= revision)


@pytest.mark.parametrize("name", ["refused", "reset", "black-holed", "throttled", "half-open"])
async def test_a_routing_change_during_the_fault_of_one_is_followed_after_it(
    pair: Pair, name: str
) -> None:
    response = await pair.far.client.post("/versions/other-1/load?wait=true")
    assert response.status_code == 200, response.text
    await eventually(lambda: knows(pair.near))
    async with shopping(pair.near, pair.server) as traffic:
        await pair.proxy.switch(FAULTS[name])
        await eventually(lambda: document_store_is(pair.near, up=False))
        response = await pair.far.client.put(
            "/routing", json=PLAN | {"default": "other-1"}, headers={"if-match": "*"}
        )
        assert response.status_code == 200, response.text
        revision = response.json()["revision"]
        assert (await pair.far.rewrite("stake"))["model_version"] == "other-1"
        await traffic.more()
        assert (await pair.near.rewrite("stake"))["model_version"] == "test-1"
        # Who cannot reach the others takes no changes that they would not hear of.
        refused = await pair.near.client.put("/routing", json=PLAN, headers={"if-match": "*"})
        assert refused.status_code == 503
        await pair.proxy.switch(Pass())
        await eventually(lambda: follows(pair.near, revision))
        assert (await pair.near.rewrite("stake"))["model_version"] == "other-1"
        await eventually(lambda: document_store_is(pair.near, up=True))
        await traffic.more()


async def knows(service: Service) -> bool:
    """Whether the service has loaded other-1."""
    known = (await service.client.get("/versions")).json()["versions"]
    return any(one["name"] == "other-1" and one["state"] == "ready" for one in known)


async def document_store_is(service: Service, *, up: bool) -> bool:
    """Whether the service says so of the documents that replicas share."""
    shown = await scrape(service.client, "requery_control_board_up")
    return shown == {(): float(up)}
