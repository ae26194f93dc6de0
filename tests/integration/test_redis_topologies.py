"""The cache and the documents on one server, on a cluster, and behind a sentinel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from prometheus_client import CollectorRegistry
from redis.crc import key_slot

from service.cache import redis_tier
from service.cache.keys import cache_key, version_prefix
from service.cache.redis_tier import RedisTier
from service.control.documents import Document
from service.errors import DocumentStoreUnavailable, StaleRevision
from service.redis.client import connect
from service.routing.exposures import STREAM, Exposure, StreamSink
from tests.support.document_store import NEVER_S, Body, Replica, listeners, replicas
from tests.support.redis_cache import VALUE, entry, open_cache
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_sentinel import RedisSentinel
from tests.support.redis_server import RedisServer
from tests.support.service import serving
from tests.support.waiting import until

pytestmark = pytest.mark.integration

DIGEST, OTHER = "ab" * 32, "cd" * 32
NAMES = [f"doc-{i}" for i in range(8)]

Open = Callable[..., Replica]


class Redis(Protocol):
    """A Redis of any kind."""

    @property
    def url(self) -> str: ...

    @property
    def masters(self) -> list[RedisServer]: ...

    def keys(self) -> list[int]: ...


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("single"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinel]:
    yield from _watched(tmp_path_factory.mktemp("sentinel"))


@pytest.fixture
def own_sentinel(tmp_path: Path) -> Iterator[RedisSentinel]:
    """One whose master may die."""
    yield from _watched(tmp_path)


def _watched(folder: Path) -> Iterator[RedisSentinel]:
    watched = RedisSentinel(folder)
    try:
        watched.start()
        yield watched
    finally:
        watched.stop()


@pytest.fixture(params=["single", "cluster", "sentinel"])
def redis(request: pytest.FixtureRequest) -> Redis:
    """Empty, and without counts of commands."""
    found: Redis = request.getfixturevalue(request.param)
    _empty(found)
    return found


def _empty(redis: Redis) -> None:
    for node in redis.masters:
        with node.client() as client:
            client.flushall()
            client.config_resetstat()


@pytest.fixture
async def replica() -> AsyncIterator[Open]:
    async with replicas(Replica) as start:
        yield start


async def put(document: Document[Body], value: str, **options: Any) -> None:
    await document.update(lambda _: {"v": value}, action="put", author="ada", **options)


class TestCache:
    async def test_entries_are_read_counted_and_purged_and_all_else_is_left_alone(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Small steps, so that a purge takes several.
        monkeypatch.setattr(redis_tier, "_SCAN_COUNT", 50)
        monkeypatch.setattr(redis_tier, "_UNLINK_BATCH", 20)
        registry = CollectorRegistry()
        cache = open_cache(redis.url, registry, reading_every_s=0.05)
        keys = [cache_key(DIGEST, f"query {i}") for i in range(300)]
        keep = [cache_key(OTHER, f"query {i}") for i in range(30)]
        keep += ["requery:control:routing", "someone:else"]
        await asyncio.gather(*(cache.put(key, entry()) for key in keys + keep))
        assert sum(redis.keys()) == 332
        assert min(redis.keys()) > 50, "they are spread over all masters"
        found = await asyncio.gather(*(cache.get(key, budget_s=10) for key in keys))
        assert [one and one.generation for one in found] == [VALUE] * 300

        def sample(name: str) -> float:
            return registry.get_sample_value(name) or 0.0

        await cache.start()
        await until(lambda: sample("requery_cache_redis_keys") == 332)
        assert sample("requery_cache_redis_bytes") > len(redis.masters) * 500_000

        assert await cache.forget([*keys[:30], cache_key(DIGEST, "none")]) == 30
        assert await cache.forget(keys[:30]) == 0
        assert await cache.forget_prefix(version_prefix(DIGEST)) == 270
        assert sum(redis.keys()) == 32
        found = await asyncio.gather(*(cache.get(key, budget_s=10) for key in keep))
        assert [one and one.generation for one in found] == [VALUE] * 32
        for node in redis.masters:
            with node.client() as client:
                assert "cmdstat_keys" not in client.info("commandstats"), "it blocks the server"
        await cache.close()

    async def test_a_restarted_service_answers_from_it(self, redis: Redis) -> None:
        options = {
            "redis_url": redis.url, "redis_read_budget_ms": 5000, "redis_write_budget_ms": 5000,
        }  # fmt: skip
        async with serving() as start:
            service = await start(**options)
            await service.rewrite("steele stake", deadline_ms=20_000)
            await until(lambda: sum(redis.keys()) > 0)
        async with serving() as start:
            service = await start(**options)
            assert (await service.rewrite("steele stake", deadline_ms=20_000))["source"] == "redis"
            assert service.engine.generated == []

    async def test_a_slot_that_moved_is_followed(self, cluster: RedisCluster) -> None:
        _empty(cluster)
        cache = open_cache(cluster.url)
        key = cache_key(DIGEST, "steele stake")
        assert await cache.get(key, budget_s=10) is None
        slot = key_slot(key.encode())
        owner = cluster.nodes[slot * 3 // 16384]
        receiver = next(node for node in cluster.nodes if node is not owner)
        cluster.give(slot, receiver)
        await cache.put(key, entry())
        found = await cache.get(key, budget_s=10)
        assert found is not None
        assert found.generation == VALUE
        with receiver.client() as client:
            assert client.dbsize() == 1
            client.flushall()
        await cache.close()
        cluster.give(slot, owner)

    async def test_a_cluster_that_comes_late_is_used_and_does_without_one_master(
        self, tmp_path: Path
    ) -> None:
        cluster = RedisCluster(tmp_path)
        cache = open_cache(cluster.url)
        assert await cache.get("k", budget_s=10) is None
        await cache.put("k", entry())
        try:
            cluster.start()
            keys = [cache_key(DIGEST, f"query {i}") for i in range(60)]
            await cache.put(keys[0], entry())
            assert await cache.get(keys[0], budget_s=10) is not None
            await asyncio.gather(*(cache.put(key, entry()) for key in keys))
            lost = cluster.keys()[0]
            cluster.nodes[0].stop()
            # The first look-ups may go by a map that is being drawn anew.
            for key in keys[:5]:
                await cache.get(key, budget_s=10)
            found = [await cache.get(key, budget_s=10) for key in keys]
            assert sum(one is not None for one in found) == 60 - lost
            for key in keys:
                await cache.put(key, entry())
            await cache.close()
        finally:
            cluster.stop()


class TestDocuments:
    async def test_they_are_written_and_followed(self, redis: Redis, replica: Open) -> None:
        """By messages alone: nobody looks in between."""
        one, two = (replica(redis.url, follows=False, poll_s=NEVER_S) for _ in range(2))
        here, there = ([one.document(name) for name in NAMES] for one in (one, two))
        for each in (one, two):
            each.follow()
        await until(lambda: listeners(*redis.masters) == 2)
        for document in here:
            await put(document, document.name, expected=0)
        await until(lambda: all(document.value == {"v": document.name} for document in there))
        assert min(redis.keys()) > 0, "each master has some of them"
        with pytest.raises(StaleRevision):
            await put(there[0], "late", expected=0)
        assert len(await one.store.notes(100)) == len(NAMES)

    async def test_exposure_records_go_to_one_stream(self, redis: Redis) -> None:
        sink = StreamSink(connect(redis.url, max_connections=2, timeout_s=10), max_entries=100)
        record = Exposure(1, "r", "u", "s", 1, "a", "a", "unit", "ok", "engine", 1)
        await sink.write([record] * 5)
        await sink.close()
        assert sorted(redis.keys()) == [0] * (len(redis.masters) - 1) + [1]
        (node,) = (node for node, keys in zip(redis.masters, redis.keys(), strict=True) if keys)
        with node.client() as client:
            assert client.xlen(STREAM) == 5


class TestFailover:
    """The cache and the documents follow the master, whichever server that is."""

    async def test_when_the_master_dies_nothing_is_lost(
        self, own_sentinel: RedisSentinel, replica: Open
    ) -> None:
        watched = own_sentinel
        cache = open_cache(watched.url)
        await cache.put("before", entry())
        here, there = (replica(watched.url).document("doc") for _ in range(2))
        await put(here, "before")
        await until(lambda: there.value == {"v": "before"})
        watched.settle()
        watched.master.stop()
        found = await cache.get("before", budget_s=10)
        while found is None:  # until the sentinel has promoted the replica
            await asyncio.sleep(0.05)
            found = await cache.get("before", budget_s=10)
        assert found.generation == VALUE
        await _cached(cache, "after")
        await _stored(here, "after")
        await until(lambda: there.value == {"v": "after"})
        assert here.revision == there.revision > 1
        with watched.replica.client() as client:
            assert client.role()[0] == b"master"
            assert client.exists("before", "after") == 2
        assert await cache.forget(["before", "after", "none"]) == 2
        await cache.close()

    async def test_a_master_that_was_demoted_is_left_for_the_new_one(
        self, own_sentinel: RedisSentinel, replica: Open
    ) -> None:
        watched = own_sentinel
        cache = open_cache(watched.url)
        await cache.put("before", entry())
        here, there = (replica(watched.url).document("doc") for _ in range(2))
        await put(here, "before")
        await until(lambda: there.value == {"v": "before"})
        watched.settle()
        await watched.demote()
        # Connections to the old master are as good as ever, but it no longer takes writes.
        await _cached(cache, "after")
        await _stored(here, "after")
        await until(lambda: there.value == {"v": "after"})
        with watched.replica.client() as client:
            assert client.exists("before", "after") == 2
        await cache.close()


async def _cached(cache: RedisTier, key: str) -> None:
    """Write an entry until it is there; the test's own timeout bounds it."""
    while await cache.get(key, budget_s=10) is None:
        await cache.put(key, entry())
        await asyncio.sleep(0.02)


async def _stored(document: Document[Body], value: str) -> None:
    """Write a document until it is there; the test's own timeout bounds it."""
    while document.value != {"v": value}:
        try:
            await put(document, value)
        except DocumentStoreUnavailable:
            await asyncio.sleep(0.02)
