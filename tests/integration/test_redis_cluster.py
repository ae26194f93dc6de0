"""The shared tier on a real Redis Cluster of three masters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.crc import key_slot

from service.cache.keys import cache_key, version_prefix
from tests.support.redis_cache import VALUE, entry, open_cache, until
from tests.support.redis_cluster import RedisCluster
from tests.support.service import serving

pytestmark = pytest.mark.integration

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


async def test_entries_spread_over_all_masters_are_read_counted_and_purged(
    cluster: RedisCluster,
) -> None:
    registry = CollectorRegistry()
    cache = open_cache(cluster.url, registry, reading_every_s=0.05)
    keys = [cache_key(DIGEST, f"query {i}") for i in range(300)]
    keep = [cache_key(OTHER, f"query {i}") for i in range(30)]
    await asyncio.gather(*(cache.put(key, entry()) for key in keys + keep))
    assert sum(cluster.keys()) == 330
    assert min(cluster.keys()) > 50
    found = await asyncio.gather(*(cache.get(key, budget_s=10) for key in keys))
    assert [one and one.generation for one in found] == [VALUE] * 300

    def sample(name: str) -> float:
        return registry.get_sample_value(name) or 0.0

    await cache.start()
    await until(lambda: sample("requery_cache_redis_keys") == 330)
    assert sample("requery_cache_redis_bytes") > 3 * 500_000

    assert await cache.forget([*keys[:10], cache_key(DIGEST, "none")]) == 10
    assert await cache.forget_prefix(version_prefix(DIGEST)) == 290
    assert sum(cluster.keys()) == 30
    found = await asyncio.gather(*(cache.get(key, budget_s=10) for key in keep))
    assert [one and one.generation for one in found] == [VALUE] * 30
    await cache.close()


async def test_a_slot_that_moved_is_followed(cluster: RedisCluster) -> None:
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
    await cache.close()


async def test_without_one_master_the_others_serve_and_nothing_fails(
    cluster: RedisCluster,
) -> None:
    registry = CollectorRegistry()
    cache = open_cache(cluster.url, registry)
    keys = [cache_key(DIGEST, f"query {i}") for i in range(60)]
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


async def test_a_cluster_that_comes_late_is_used_once_it_is_there(tmp_path: Path) -> None:
    cluster = RedisCluster(tmp_path)
    cache = open_cache(cluster.url)
    assert await cache.get("k", budget_s=10) is None
    await cache.put("k", entry())
    try:
        cluster.start()
        await cache.put("k", entry())
        assert await cache.get("k", budget_s=10) is not None
        await cache.close()
    finally:
        cluster.stop()


async def test_a_restarted_service_answers_from_the_cluster(cluster: RedisCluster) -> None:
    options = {
        "redis_url": cluster.url, "redis_read_budget_ms": 5000, "redis_write_budget_ms": 5000,
    }  # fmt: skip
    async with serving() as start:
        service = await start(**options)
        await service.rewrite("steele stake", deadline_ms=20_000)
        await service.idle()
    async with serving() as start:
        service = await start(**options)
        assert (await service.rewrite("steele stake", deadline_ms=20_000))["source"] == "redis"
