"""The shared tier on a real Redis server: hits, outages, and what they may cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Connection

from service.cache import metrics as metrics_of_cache
from service.cache.keys import cache_key, version_prefix
from service.errors import CacheUnavailable
from tests.support.engine import ScriptedEngine
from tests.support.redis_cache import VALUE, entry, open_cache
from tests.support.redis_server import RedisServer
from tests.support.service import Serve, Service
from tests.support.versions import make_manifest
from tests.support.waiting import until

pytestmark = pytest.mark.integration

GENEROUS = {"redis_read_budget_ms": 2000, "redis_write_budget_ms": 2000}
"""Budgets that a busy machine keeps; tests of outages use the real ones."""
OPERATIONS = "requery_cache_operations_total"


async def ask(service: Service, query: str = "steele stake") -> tuple[str, bytes]:
    """Source and the very bytes of the rewrites."""
    response = await service.client.post("/rewrite", json={"query": query, "deadline_ms": 20_000})
    assert response.status_code == 200
    content = response.content
    await service.idle()
    return response.json()["source"], content[content.index(b'"rew') : content.index(b'"status')]


def calls(server: RedisServer, command: str) -> int:
    """How often the server was asked for it."""
    with server.client() as client:
        stats = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def outcomes(service: Service, op: str) -> dict[str, float]:
    """Results of an operation on Redis, with how often each was counted."""
    counted = {
        result: await service.metric(OPERATIONS, tier="redis", op=op, result=result)
        for result in metrics_of_cache.OPERATIONS["redis", op]
    }
    return {result: times for result, times in counted.items() if times}


def operations(registry: CollectorRegistry, op: str, result: str) -> float:
    """Operations on Redis counted so far."""
    labels = {"tier": "redis", "op": op, "result": result}
    return registry.get_sample_value(OPERATIONS, labels) or 0.0


async def count(service: Service, op: str, result: str) -> float:
    """Operations counted so far; waits for the first, since writes happen after the answer."""
    for _ in range(200):
        found = await service.metric(OPERATIONS, tier="redis", op=op, result=result)
        if found:
            return found
        await asyncio.sleep(0.05)
    return 0.0


async def test_an_answer_comes_back_from_redis_byte_for_byte(
    server: RedisServer, serve: Serve
) -> None:
    script = [("steel stake", 0.1 + 0.2), ("st\u00e4hl pole \U0001f528", 1 / 3), ("cut", None)]
    first = await serve(ScriptedEngine({"steele stake": script}), redis_url=server.url, **GENEROUS)
    source, made = await ask(first)
    assert source == "engine"
    assert await count(first, "put", "ok") == 1
    other = await serve(redis_url=server.url, **GENEROUS)
    assert await ask(other) == ("redis", made)
    assert await ask(other) == ("memory", made)
    assert other.engine.generated == []
    response = await other.client.post("/rewrite", json={"query": "steele stake"})
    assert response.headers["cache-status"] == "requery; hit; detail=memory"


async def test_entries_are_small_and_expire(server: RedisServer, serve: Serve) -> None:
    service = await serve(redis_url=server.url, cache_ttl_s=100, **GENEROUS)
    await ask(service)
    with server.client() as client:
        key = cache_key(make_manifest().digest, "steele stake")
        assert client.keys(version_prefix(make_manifest().digest) + "*") == [key.encode()]
        assert 50_000 < int(client.pttl(key)) <= 100_000
        assert int(client.strlen(key)) < 100


@pytest.mark.parametrize("value", [b"", b"nonsense", b"[99,[]]", b"x" * 200_000])
async def test_a_value_that_is_not_ours_is_a_counted_miss(
    server: RedisServer, serve: Serve, value: bytes
) -> None:
    with server.client() as client:
        client.set(cache_key(make_manifest().digest, "steele stake"), value)
    service = await serve(redis_url=server.url, **GENEROUS)
    assert (await ask(service))[0] == "engine"
    assert await count(service, "get", "corrupt") == 1


async def test_a_key_of_another_type_is_a_counted_error(server: RedisServer, serve: Serve) -> None:
    with server.client() as client:
        client.lpush(cache_key(make_manifest().digest, "steele stake"), "x")
    service = await serve(redis_url=server.url, **GENEROUS)
    assert (await ask(service))[0] == "engine"
    assert await count(service, "get", "error") == 1


async def test_a_server_that_is_not_there_at_start_is_a_warning_and_used_once_it_comes(
    server: RedisServer, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    service = await serve(redis_url=server.url, **GENEROUS)
    assert (await ask(service, "a stake"))[0] == "engine"
    assert (await ask(service, "a stake"))[0] == "memory"
    assert await count(service, "get", "error") == 1
    assert capsys.readouterr().out.count("redis_unavailable") == 1
    server.start()
    assert (await ask(service, "b stake"))[0] == "engine"
    assert await count(service, "put", "ok") == 1
    assert capsys.readouterr().out.count("redis_back") == 1


async def test_a_server_that_hangs_costs_its_budget_and_no_request(
    server: RedisServer, serve: Serve
) -> None:
    service = await serve(redis_url=server.url, redis_read_budget_ms=10, redis_write_budget_ms=10)
    with server.client() as client:
        client.config_resetstat()
    server.freeze()
    assert (await ask(service))[0] == "engine"
    assert await count(service, "put", "timeout") == 1
    assert await outcomes(service, "get") == {"timeout": 1}
    assert await outcomes(service, "put") == {"timeout": 1}
    server.thaw()
    # What was sent before is answered to nobody; nothing was sent twice.
    assert calls(server, "get") <= 1
    assert calls(server, "set") <= 1


async def test_a_budget_that_ends_while_a_command_is_sent_is_a_timeout_all_the_same(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 drops a cancellation that comes then, and redis-py goes on for a second."""
    send = Connection._send_packed_command

    async def send_on_a_busy_machine(self: Connection, command: Iterable[bytes]) -> None:
        await send(self, command)
        time.sleep(0.05)  # noqa: ASYNC251 - the event loop is what stands still

    monkeypatch.setattr(Connection, "_send_packed_command", send_on_a_busy_machine)
    registry = CollectorRegistry()
    cache = open_cache(server.url, registry, write_budget_s=0.01)
    server.freeze()
    assert await cache.get("k", budget_s=0.01) is None
    await cache.put("k", entry())
    server.thaw()
    await cache.close()
    counted = {
        (sample.labels["op"], sample.labels["result"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == OPERATIONS and sample.value
    }
    assert counted == {("get", "timeout"): 1, ("put", "timeout"): 1}


async def test_a_full_server_is_read_on_and_written_to_once_there_is_room(
    server: RedisServer,
) -> None:
    registry = CollectorRegistry()
    cache = open_cache(server.url, registry)
    await cache.put("k", entry())
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.set("filling", "x" * 2**21)
        client.config_set("maxmemory", "1mb")
    while not operations(registry, "put", "skipped"):
        await cache.put("new", entry())
        found = await cache.get("k", budget_s=10)
        assert found is not None
        assert found.generation == VALUE
    assert operations(registry, "put", "oom") >= 1
    assert cache.up
    with server.client() as client:
        client.config_set("maxmemory", "100mb")
    while await cache.get("new", budget_s=10) is None:
        await cache.put("new", entry())
        await asyncio.sleep(0.02)
    await cache.close()


async def test_a_server_that_was_restarted_empty_is_found_by_pings_alone(
    server: RedisServer,
) -> None:
    cache = open_cache(server.url)
    await cache.put("k", entry())
    server.stop()
    while not cache.shut_off:
        await cache.get("k", budget_s=10)
    server.start()
    await until(lambda: cache.up)
    assert (calls(server, "get"), calls(server, "set")) == (0, 0)
    assert await cache.get("k", budget_s=10) is None
    await cache.put("k", entry())
    assert await cache.get("k", budget_s=10) is not None
    await cache.close()


async def test_a_server_that_hangs_with_every_connection_in_use_is_left_alone_until_it_is_back(
    server: RedisServer,
) -> None:
    registry = CollectorRegistry()
    cache = open_cache(server.url, registry, concurrency=32, read_budget_s=0.1)
    await asyncio.gather(*(cache.put(f"k{i}", entry()) for i in range(100)))
    server.freeze()
    while not cache.shut_off:
        await asyncio.gather(*(cache.get(f"k{i}", budget_s=0.1) for i in range(100)))
    skipped = operations(registry, "get", "skipped")
    timeouts = operations(registry, "get", "timeout")
    for i in range(100):
        assert await cache.get(f"k{i}", budget_s=0.1) is None
    assert operations(registry, "get", "skipped") == skipped + 100
    assert operations(registry, "get", "timeout") == timeouts
    server.thaw()
    await until(lambda: cache.up)
    found = await cache.get("k7", budget_s=10)
    assert found is not None
    assert found.generation == VALUE
    await cache.close()


async def test_connections_that_died_without_a_word_do_not_keep_a_new_server_unseen(
    server: RedisServer,
) -> None:
    cache = open_cache(server.url, concurrency=32, read_budget_s=0.5)
    await asyncio.gather(*(cache.put(f"k{i}", entry()) for i in range(200)))
    server.freeze()
    while not cache.shut_off:
        await cache.get("k", budget_s=0.5)
    # It never comes back, and another one takes its place; nobody has said so to the old sockets.
    server.stop()
    server.start()
    await until(lambda: cache.up)
    await cache.put("k", entry())
    assert await cache.get("k", budget_s=10) is not None
    await cache.close()


async def test_connections_are_bounded_and_a_burst_waits_for_them(server: RedisServer) -> None:
    cache = open_cache(server.url, concurrency=2)
    await asyncio.gather(*(cache.put(f"k{i}", entry()) for i in range(50)))
    found = await asyncio.gather(*(cache.get(f"k{i}", budget_s=10) for i in range(50)))
    assert [one and one.generation for one in found] == [VALUE] * 50
    with server.client() as client:
        assert len(client.client_list()) <= 3
    await cache.close()


async def test_a_look_up_that_is_given_up_leaves_the_pool_whole(server: RedisServer) -> None:
    cache = open_cache(server.url, concurrency=1)
    await cache.put("k", entry())
    server.freeze()
    for _ in range(3):
        assert await cache.get("k", budget_s=0.02) is None
    server.thaw()
    # An answer to an earlier question must never be taken for this one's.
    assert await cache.get("other", budget_s=10) is None
    found = await cache.get("k", budget_s=10)
    assert found is not None
    assert found.generation == VALUE
    await cache.close()


async def test_a_purge_says_so_when_redis_does_not_answer(server: RedisServer) -> None:
    cache = open_cache(server.url)
    server.stop()
    with pytest.raises(CacheUnavailable):
        await cache.forget(["k"])
    with pytest.raises(CacheUnavailable):
        await cache.forget_prefix("requery:")
    await cache.close()


async def test_writes_stop_at_the_bound_on_bytes_and_sizes_are_visible(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry()

    def sample(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    with server.client() as client:
        client.set("other", "x" * 100)
        used = client.info("memory")["used_memory"]
    bound = used + 8 * 2**20
    cache = open_cache(server.url, registry, max_bytes=bound, reading_every_s=0.01)
    await cache.start()
    await until(lambda: sample("requery_cache_redis_bytes") > 0)
    assert sample("requery_cache_redis_keys") == 1
    await cache.put("small", entry())
    assert sample(OPERATIONS, tier="redis", op="put", result="ok") == 1
    with server.client() as client:
        client.set("other", "x" * (9 * 2**20))
    await until(lambda: sample("requery_cache_redis_bytes") > bound)
    await cache.put("refused", entry())
    assert sample(OPERATIONS, tier="redis", op="put", result="full") == 1
    assert await cache.get("refused", budget_s=10) is None
    assert await cache.get("small", budget_s=10) is not None
    with server.client() as client:
        client.delete("other")
    await until(lambda: 0 < sample("requery_cache_redis_bytes") < bound * 0.9)
    await cache.put("taken again", entry())
    assert sample(OPERATIONS, tier="redis", op="put", result="ok") == 2
    await cache.close()
    assert "redis_unbounded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ({}, "redis_unbounded"),
        ({"maxmemory": "100mb", "maxmemory-policy": "noeviction"}, "redis_evicts_nothing"),
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, None),
    ],
)
async def test_a_server_that_will_fill_up_is_worth_a_warning(
    server: RedisServer,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, str],
    advice: str | None,
) -> None:
    with server.client() as client:
        for name, value in config.items():
            client.config_set(name, value)
    registry = CollectorRegistry()
    cache = open_cache(server.url, registry, reading_every_s=0.01)
    await cache.start()
    await until(lambda: (registry.get_sample_value("requery_cache_redis_bytes") or 0.0) > 0)
    await cache.close()
    told = capsys.readouterr().out
    for warning in ("redis_unbounded", "redis_evicts_nothing"):
        assert told.count(warning) == (warning == advice)


async def test_a_server_with_a_password_on_a_unix_socket_is_used(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    server = RedisServer(tmp_path, "--unixsocket", str(socket), "--requirepass", "p@ss/word")
    server.start(password="p@ss/word")
    for url in (
        f"unix://:p%40ss%2Fword@{socket}?db=3",
        f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/3",
    ):
        cache = open_cache(url)
        await cache.put("k", entry())
        assert await cache.get("k", budget_s=10) is not None
        await cache.close()
    with server.client(password="p@ss/word", db=3) as client:
        assert client.dbsize() == 1
    server.stop()
