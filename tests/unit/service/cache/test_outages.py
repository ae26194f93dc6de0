"""What an outage of Redis costs, and how its end is found; on a client that does as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from service.cache import batched_reads as lookups
from service.cache import redis_tier as tier_module
from service.cache.lifetimes import Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.redis_tier import RedisTier
from service.redis.client import connect
from service.resilience.metrics import BreakerMetrics
from tests.support.tiers import Tiers, generation, seen
from tests.support.waiting import turns, until

REFUSED = RedisConnectionError("refused")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are over soon; that they double is the breaker's own test."""
    monkeypatch.setattr(tier_module, "_LONGEST_OPEN_S", 0.02)
    monkeypatch.setattr(tier_module, "_SHORTEST_WAIT_S", 0.001)


class World(Tiers):
    """One replica. Its budgets are long, so that only what a test holds back is late."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[RedisTier] = [self.shared]
        self.use()

    def use(self, **options: Any) -> None:
        """Another replica, with other options."""
        defaults: dict[str, Any] = {"read_budget_s": 60.0, "breakers": self.breakers}
        self.shared = self.tier(self.metrics, **(defaults | options))
        self.opened.append(self.shared)
        self.cache = self.replica(self.shared, self.metrics)

    async def look_up(self, times: int, *, budget_s: float = 60.0) -> None:
        for i in range(times):
            assert await self.shared.get(f"none {i}", budget_s=budget_s) is None

    async def write(self, key: str = "k") -> None:
        await self.shared.put(key, self.lifetimes.entry(key, generation("x")))

    def transitions(self, to: str, name: str = "redis") -> float:
        labels = {"name": name, "to": to}
        return self.registry.get_sample_value("requery_breaker_transitions_total", labels) or 0.0


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for gate in world.redis.gates.values():
        gate.set()
    for one in world.opened:
        await one.close()


async def test_an_outage_costs_five_commands_and_then_nothing(world: World) -> None:
    world.redis.fault = REFUSED
    await world.look_up(4)
    assert world.state() == "closed"
    await world.look_up(1)
    assert world.state() == "open"
    await world.look_up(20)
    await world.write()
    assert (world.redis.asked["GET"], world.redis.asked["SET"]) == (5, 0)
    assert world.count("redis", "get", "error") == 5
    assert world.count("redis", "get", "skipped") == 20
    assert world.count("redis", "put", "skipped") == 1


async def test_what_is_skipped_does_not_even_let_the_event_loop_turn(world: World) -> None:
    world.redis.fault = REFUSED
    await world.look_up(5)
    for call in (world.cache.get("k", budget_s=60), world.cache.put("k", generation("x"))):
        with pytest.raises(StopIteration):
            call.send(None)


async def test_memory_serves_all_the_while_and_look_ups_that_were_skipped_are_no_misses(
    world: World,
) -> None:
    world.redis.fault = REFUSED
    await world.look_up(5)
    await world.cache.put("k", generation("x"))
    assert await seen(world.cache, "k") == ("memory", "x", False)
    await world.look_up(100)
    ratio = world.registry.get_sample_value("requery_cache_hit_ratio", {"tier": "redis"})
    assert ratio == 0
    world.redis.fault = None
    await until(lambda: world.shared.up)
    await world.write("shared")
    for _ in range(5):
        assert await world.shared.get("shared", budget_s=60) is not None
    # Five hits of ten look-ups.
    ratio = world.registry.get_sample_value("requery_cache_hit_ratio", {"tier": "redis"})
    assert ratio == pytest.approx(0.5)


async def test_pings_find_the_way_back_and_no_look_up_does(world: World) -> None:
    world.redis.fault = REFUSED
    await world.look_up(5)
    assert not world.shared.up
    world.redis.fault = None
    await until(lambda: world.shared.up)
    assert world.state() == "closed"
    assert world.redis.asked["GET"] == 5
    # One that opens the connection, and three that are judged.
    assert world.redis.asked["PING"] >= 4
    await world.look_up(1)
    assert world.redis.asked["GET"] == 6


async def test_a_redis_that_fails_again_and_again_is_found_to_be_back_each_time(
    world: World,
) -> None:
    for outage in range(1, 4):
        world.redis.fault = REFUSED
        await world.look_up(5)
        assert world.transitions("open") >= outage
        world.redis.fault = None
        await until(lambda: world.shared.up)
    assert world.state() == "closed"


async def test_one_good_ping_is_not_enough(world: World) -> None:
    world.redis.fault = REFUSED
    await world.look_up(5)

    async def every_other() -> None:
        # The first of each round opens the connection; then one is good, and one is not.
        world.redis.fault = REFUSED if world.redis.asked["PING"] % 3 == 0 else None

    world.redis.before = every_other
    await until(lambda: world.redis.asked["PING"] >= 12)
    assert world.transitions("closed") == 0
    world.redis.before = None
    world.redis.fault = None
    await until(lambda: world.shared.up)


async def test_a_redis_that_answers_but_too_late_for_a_look_up_is_not_back(world: World) -> None:
    world.use(read_budget_s=0.05)
    world.redis.gates["GET"] = asyncio.Event()

    async def slow() -> None:
        await asyncio.sleep(0.2)

    while world.state() == "closed":  # a wait that ended late by our own doing does not count
        await world.look_up(1, budget_s=0.05)
    world.redis.before = slow
    await until(lambda: (world.count("redis", "ping", "timeout") or 0) >= 2)
    assert world.transitions("closed") == 0
    world.redis.before = None
    world.redis.gates.pop("GET").set()
    await until(lambda: world.shared.up)


async def test_writes_that_take_their_time_do_not_hide_that_look_ups_fail(world: World) -> None:
    world.use(read_budget_s=0.02)
    world.redis.gates["GET"] = asyncio.Event()

    async def slow() -> None:
        await asyncio.sleep(0.03)

    world.redis.before = slow
    while world.state() == "closed":
        await world.look_up(1, budget_s=0.02)
        await world.write()
    assert world.count("redis", "put", "ok")


async def test_hung_commands_that_take_every_place_keep_no_probe_from_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "HOLD_S", 0.0)
    world.use(read_budget_s=0.05, concurrency=4)
    world.redis.gates |= {"GET": asyncio.Event(), "SET": asyncio.Event()}

    while world.state() == "closed":
        asking = []
        for _ in range(8):
            asking.append(asyncio.create_task(world.shared.get("k", budget_s=0.05)))
            await turns()  # look-ups of one turn would share a place
        await asyncio.gather(*asking)
    assert world.redis.asked["GET"] == 3
    # They hang on, and yet:
    await until(lambda: world.shared.up)
    world.redis.gates.pop("GET").set()
    await world.look_up(1)


async def test_idle_connections_are_dropped_when_it_opens(world: World) -> None:
    # Those to a server that has gone without a word would fail one by one, each after a while.
    world.redis.fault = REFUSED
    await world.look_up(4)
    assert world.redis.dropped == 0
    await world.look_up(1)
    await until(lambda: world.redis.dropped == 1)


async def test_callers_in_a_hurry_say_nothing_about_redis(world: World) -> None:
    world.redis.gates["GET"] = asyncio.Event()
    await world.look_up(20, budget_s=0.001)
    assert world.count("redis", "get", "timeout") == 20
    assert world.state() == "closed"


async def test_a_process_too_busy_to_look_says_nothing_about_redis(world: World) -> None:
    world.use(read_budget_s=0.001)

    async def busy() -> None:
        time.sleep(0.03)  # noqa: ASYNC251 - the event loop is what stands still
        await asyncio.sleep(0.03)

    world.redis.before = busy
    await world.look_up(10, budget_s=0.001)
    assert world.count("redis", "get", "timeout") == 10
    assert world.state() == "closed"


@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE"), NoPermissionError("get")])
async def test_a_redis_that_says_no_to_a_look_up_is_alive(world: World, error: Exception) -> None:
    world.redis.faults["GET"] = error
    await world.look_up(20)
    assert world.count("redis", "get", "error") == 20
    assert world.state() == "closed"
    assert world.shared.up


@pytest.mark.parametrize(
    "error", [BusyLoadingError("loading"), ClusterDownError("down"), AuthenticationError("who")]
)
async def test_a_redis_that_cannot_serve_is_left_alone(world: World, error: Exception) -> None:
    world.redis.fault = error
    await world.look_up(5)
    assert world.state() == "open"
    pings = world.redis.asked["PING"]
    await until(lambda: world.redis.asked["PING"] >= pings + 4)
    assert world.transitions("closed") == 0
    world.redis.fault = None
    await until(lambda: world.shared.up)


async def test_a_redis_that_may_not_be_pinged_is_back_when_it_says_so(world: World) -> None:
    world.redis.fault = REFUSED
    await world.look_up(5)
    world.redis.faults["PING"] = NoPermissionError("this user has no permissions to ping")
    world.redis.fault = None
    await until(lambda: world.shared.up)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "oom"),
        (ReadOnlyError("You can't write against a read only replica."), "error"),
    ],
)
async def test_a_redis_that_refuses_writes_is_read_on_and_written_to_later(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    result: str,
) -> None:
    monkeypatch.setattr(tier_module, "_REFUSED_S", 3600.0)
    world.use()
    await world.write("before")
    world.redis.faults["SET"] = error
    for _ in range(20):
        await world.write()
        assert await world.shared.get("before", budget_s=60) is not None
    assert world.count("redis", "put", result) == 1
    assert world.count("redis", "put", "skipped") == 19
    assert (world.state(), world.state("redis_writes")) == ("closed", "open")
    assert world.shared.up
    told = capsys.readouterr().out
    assert told.count("redis_refuses_writes") == 1
    assert "redis_unavailable" not in told


async def test_writes_go_on_once_they_are_taken_again(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tier_module, "_REFUSED_S", 0.001)
    world.use()
    world.redis.faults["SET"] = OutOfMemoryError("full")
    while (world.count("redis", "put", "oom") or 0) < 3:
        await world.write()
        await asyncio.sleep(0.001)
    assert world.transitions("closed", "redis_writes") == 0
    del world.redis.faults["SET"]
    while not world.redis.sets:
        await world.write()
        await asyncio.sleep(0.001)
    assert world.state("redis_writes") == "closed"
    told = capsys.readouterr().out
    assert (told.count("redis_refuses_writes"), told.count("redis_takes_writes")) == (1, 1)


async def test_a_trial_write_that_ends_with_the_outage_leaves_room_for_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier_module, "_REFUSED_S", 0.0)
    world.use()
    world.redis.faults["SET"] = OutOfMemoryError("full")
    await world.write()
    world.redis.faults["SET"] = REFUSED
    await world.write()
    del world.redis.faults["SET"]
    await world.write()
    assert len(world.redis.sets) == 1


async def test_nobody_is_told_that_it_is_back_before_it_is_in_use(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.use(reading_every_s=0.001)
    await world.shared.start()
    world.redis.gates["INFO"] = asyncio.Event()
    world.redis.faults |= {"GET": REFUSED, "PING": REFUSED}
    await world.look_up(5)
    assert world.state() == "open"
    world.redis.gates.pop("INFO").set()
    # Readings of its memory are answered, which is of no use to a shopper.
    read = world.redis.asked["INFO"]
    await until(lambda: world.redis.asked["INFO"] > read + 3)
    assert not world.shared.up
    told = capsys.readouterr().out
    assert (told.count("redis_unavailable"), told.count("redis_back")) == (1, 0)
    world.redis.faults.clear()
    await until(lambda: world.shared.up)
    assert capsys.readouterr().out.count("redis_back") == 1


async def test_closing_ends_the_search_for_the_way_back(world: World) -> None:
    world.redis.fault = REFUSED
    await world.look_up(5)
    await world.shared.close()
    pings = world.redis.asked["PING"]
    await turns()
    assert world.redis.asked["PING"] == pings


async def test_the_search_is_no_part_of_the_request_that_it_began_in(world: World) -> None:
    request: ContextVar[str | None] = ContextVar("request", default=None)
    request.set("r-1")
    found: list[str | None] = []

    async def look() -> None:
        found.append(request.get())

    world.redis.fault = REFUSED
    await world.look_up(5)
    world.redis.before = look
    await until(lambda: len(found) >= 3)
    assert set(found) == {None}


async def test_a_cluster_is_asked_as_long_as_some_of_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = connect("redis+cluster://127.0.0.1:1", max_connections=4, timeout_s=1.0)
    registry = CollectorRegistry()
    cache = RedisTier(
        client,
        lifetimes=Lifetimes(hard_s=60),
        write_budget_s=60.0,
        metrics=CacheMetrics(registry),
        breakers=BreakerMetrics(registry),
    )

    async def get(key: str) -> None:
        if key == "lost":
            raise REFUSED

    monkeypatch.setattr(client, "get", get)

    def opened() -> float | None:
        labels = {"name": "redis", "state": "open"}
        return registry.get_sample_value("requery_breaker_state", labels)

    for _ in range(30):
        for key in ("lost", "lost", "there"):
            await cache.get(key, budget_s=60.0)
        for _ in range(6):
            await cache.get("lost", budget_s=60.0)
        for _ in range(12):
            await cache.get("there", budget_s=60.0)
    assert opened() == 0
    for _ in range(64):
        await cache.get("lost", budget_s=60.0)
    assert opened() == 1
    await cache.close()
