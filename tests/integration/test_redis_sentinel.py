"""The shared tier behind a real sentinel, which promotes the replica when the master dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.cache.redis_tier import RedisTier
from tests.support.redis_cache import VALUE, entry, open_cache, until
from tests.support.redis_sentinel import SERVICE, RedisSentinel
from tests.support.service import serving

pytestmark = pytest.mark.integration


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[RedisSentinel]:
    watched = RedisSentinel(tmp_path)
    try:
        watched.start()
        yield watched
    finally:
        watched.stop()


async def test_a_failover_loses_no_entry_and_fails_no_call(watched: RedisSentinel) -> None:
    registry = CollectorRegistry()
    cache = open_cache(watched.url, registry)
    await cache.put("before", entry())
    watched.settle()
    watched.master.stop()
    found = await cache.get("before", budget_s=10)
    while found is None:  # until the sentinel has promoted the replica
        await asyncio.sleep(0.1)
        found = await cache.get("before", budget_s=10)
    assert found.generation == VALUE
    await _written(cache, "after")
    with watched.replica.client() as client:
        assert client.role()[0] == b"master"
        assert client.exists("before", "after") == 2
    assert await cache.forget(["before", "after", "none"]) == 2
    await cache.close()


async def test_a_master_that_was_demoted_is_left_for_the_new_one(watched: RedisSentinel) -> None:
    cache = open_cache(watched.url)
    await cache.put("before", entry())
    watched.settle()
    with watched.sentinel.client() as client:
        client.sentinel_failover(SERVICE)
    with watched.master.client() as client:
        await until(lambda: client.role()[0] == b"slave")
    # The connection to the old master is as good as ever, but it no longer takes writes.
    await _written(cache, "after")
    with watched.replica.client() as client:
        assert client.exists("before", "after") == 2
    await cache.close()


async def test_a_restarted_service_answers_from_the_watched_master(watched: RedisSentinel) -> None:
    options = {
        "redis_url": watched.url, "redis_read_budget_ms": 5000, "redis_write_budget_ms": 5000,
    }  # fmt: skip
    async with serving() as start:
        service = await start(**options)
        await service.rewrite("steele stake", deadline_ms=20_000)
        await service.idle()
    async with serving() as start:
        service = await start(**options)
        assert (await service.rewrite("steele stake", deadline_ms=20_000))["source"] == "redis"


async def _written(cache: RedisTier, key: str) -> None:
    """Write until it is there; the test's own timeout bounds it."""
    while await cache.get(key, budget_s=10) is None:
        await cache.put(key, entry())
        await asyncio.sleep(0.05)
