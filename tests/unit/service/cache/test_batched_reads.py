"""Look-ups that travel together, and what becomes of each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from service.cache import batched_reads as lookups
from service.cache.batched_reads import MOST, Lookups, one_message
from service.redis.bounded import BoundedCommands
from service.redis.client import connect, disconnect
from tests.support.tiers import FakeRedis, Tiers, generation
from tests.support.waiting import turns, until


class Server:
    """Answers each key with itself, when it may."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.commands = BoundedCommands(4)
        self.lookups = Lookups(self.fetch, self.commands)

    async def fetch(self, keys: Sequence[str]) -> Sequence[Any]:
        self.asked.append(list(keys))
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return [None if key == "none" else f"value of {key}" for key in keys]

    async def get(self, key: str, budget_s: float = 60.0) -> Any:
        return await self.lookups.get(key, budget_s)

    def begin(self, *keys: str, budget_s: float = 60.0) -> list[asyncio.Task[Any]]:
        return [asyncio.create_task(self.get(key, budget_s)) for key in keys]


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    # Only what a test says ends a wait.
    monkeypatch.setattr(lookups, "HOLD_S", 60.0)
    server = Server()
    yield server
    server.gate.set()
    await server.commands.close()
    await server.lookups.close()


async def test_with_nothing_to_do_a_look_up_is_sent_in_the_next_turn(server: Server) -> None:
    server.gate.clear()
    (one,) = server.begin("a")
    await turns(5)
    assert server.asked == [["a"]]
    server.gate.set()
    assert await one == "value of a"


async def test_what_is_asked_for_in_one_turn_is_one_message(server: Server) -> None:
    answers = await asyncio.gather(*server.begin("a", "none", "b", "a"))
    assert answers == ["value of a", None, "value of b", "value of a"]
    assert server.asked == [["a", "none", "b"]]


async def test_what_comes_while_a_message_is_under_way_is_the_next_one(server: Server) -> None:
    server.gate.clear()
    first = server.begin("a")
    await until(lambda: server.asked == [["a"]])
    later = server.begin("b")
    await turns()
    later += server.begin("c")
    await turns()
    assert server.asked == [["a"]]
    server.gate.set()
    assert await asyncio.gather(*first, *later) == ["value of a", "value of b", "value of c"]
    assert server.asked == [["a"], ["b", "c"]]


async def test_a_slow_message_holds_nobody_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "HOLD_S", 0.001)
    server.gate.clear()
    hung = server.begin("a")
    await until(lambda: server.asked == [["a"]])
    server.gate = asyncio.Event()
    server.gate.set()
    assert await server.get("b") == "value of b"
    assert not hung[0].done()


async def test_a_message_has_a_bound(server: Server) -> None:
    keys = [str(number) for number in range(2 * MOST + 1)]
    assert await asyncio.gather(*server.begin(*keys)) == [f"value of {key}" for key in keys]
    assert [len(asked) for asked in server.asked] == [MOST, MOST, 1]


async def test_a_caller_who_leaves_takes_nobody_along(server: Server) -> None:
    server.gate.clear()
    leaving, staying = server.begin("a", "b")
    await until(lambda: bool(server.asked))
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    server.gate.set()
    assert await staying == "value of b"


async def test_if_all_have_left_nothing_is_sent(server: Server) -> None:
    server.gate.clear()
    first = server.begin("a")
    await until(lambda: bool(server.asked))
    (leaving,) = server.begin("b")
    await turns()
    leaving.cancel()
    server.gate.set()
    await asyncio.gather(*first)
    await turns()
    assert server.asked == [["a"]]
    assert await server.get("c") == "value of c"


async def test_each_caller_has_a_budget_of_its_own(server: Server) -> None:
    server.gate.clear()
    (hasty,) = server.begin("a", budget_s=0.001)
    (patient,) = server.begin("b")
    with pytest.raises(TimeoutError):
        await hasty
    assert not patient.done()
    server.gate.set()
    assert await patient == "value of b"


async def test_a_fault_is_everybodys_and_the_next_message_has_its_own(server: Server) -> None:
    server.fault = RedisConnectionError("gone")
    faults = await asyncio.gather(*server.begin("a", "b", "a"), return_exceptions=True)
    assert faults == [server.fault] * 3
    server.fault = None
    assert await server.get("a") == "value of a"


async def test_closing_ends_what_is_under_way(server: Server) -> None:
    server.gate.clear()
    waiting = server.begin("a", "b")
    await until(lambda: bool(server.asked))
    await server.commands.close()
    await server.lookups.close()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in ended] == [TimeoutError] * 2


async def test_a_login_without_mget_is_served_one_by_one(server: Server) -> None:
    redis = FakeRedis()
    redis.store = {"a": b"1", "b": b"2"}
    redis.faults["MGET"] = NoPermissionError("mget")
    fetch = one_message(redis)  # type: ignore[arg-type] # as much of a client as is needed
    assert fetch is not None
    assert await fetch(["a", "none", "b"]) == [b"1", None, b"2"]
    assert await fetch(["b", "a"]) == [b"2", b"1"]
    assert (redis.asked["MGET"], redis.asked["GET"]) == (1, 5)


async def test_keys_of_a_cluster_travel_alone() -> None:
    client = connect("redis+cluster://127.0.0.1:1", max_connections=1, timeout_s=1.0)
    assert one_message(client) is None
    await disconnect(client)


async def test_a_failed_message_counts_for_each_look_up() -> None:
    tiers = Tiers()
    shared = tiers.tier(tiers.metrics, read_budget_s=60.0, breakers=tiers.breakers)
    tiers.redis.fault = RedisConnectionError("refused")
    await asyncio.gather(*(shared.get(f"k{number}", budget_s=60.0) for number in range(5)))
    assert len(tiers.redis.together) == 1
    labels = {"tier": "redis", "op": "get", "result": "error"}
    assert tiers.registry.get_sample_value("requery_cache_operations_total", labels) == 5
    assert shared.shut_off
    await shared.close()


async def test_each_look_up_of_a_message_gets_its_own_entry() -> None:
    tiers = Tiers()
    shared = tiers.tier(tiers.metrics, read_budget_s=60.0)
    for key in ("a", "b"):
        await shared.put(key, tiers.lifetimes.entry(key, generation(f"rewrite {key}")))
    entries = await asyncio.gather(*(shared.get(k, budget_s=60.0) for k in ("a", "none", "b")))
    assert [e and e.generation.candidates[0].text for e in entries] == [
        "rewrite a", None, "rewrite b",
    ]  # fmt: skip
    assert tiers.redis.together == [["a", "none", "b"]]
    await shared.close()


async def test_those_who_ask_for_the_same_share_what_is_read_once() -> None:
    tiers = Tiers()
    shared = tiers.tier(tiers.metrics, read_budget_s=60.0)

    async def read(*keys: str) -> list[object]:
        entries = await asyncio.gather(*(shared.get(key, budget_s=60.0) for key in keys))
        return [entry and entry.generation for entry in entries]

    await shared.put("a", tiers.lifetimes.entry("a", generation("one")))
    await shared.put("b", tiers.lifetimes.entry("b", generation("one")))
    a, b, again = await read("a", "b", "a")
    assert a is again
    assert a is not b
    # What has been written since is another answer.
    await shared.put("a", tiers.lifetimes.entry("a", generation("two")))
    (later, _) = await read("a", "b")
    assert later == generation("two")
    await shared.close()
