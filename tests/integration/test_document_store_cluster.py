"""Control documents on a real Redis Cluster: each document may live on another master."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.redis_store import CHANNEL, RedisDocumentStore
from service.errors import StaleRevision
from service.redis.client import connect
from service.routing.exposures import Exposure, StreamSink
from tests.support.redis_cluster import RedisCluster

pytestmark = pytest.mark.integration

NAMES = [f"doc-{i}" for i in range(8)]
BUDGET_S = 10.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until ``holds()``; the test's own timeout bounds it."""
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


def listeners(cluster: RedisCluster) -> int:
    total = 0
    for node in cluster.nodes:
        with node.client() as client:
            total += client.pubsub_numsub(CHANNEL)[0][1]
    return total


async def replica(
    stack: AsyncExitStack, url: str, **options: Any
) -> tuple[RedisDocumentStore, dict[str, Document[dict[str, Any]]]]:
    metrics = ControlMetrics(CollectorRegistry())
    client = connect(url, max_connections=8, timeout_s=BUDGET_S)
    store = RedisDocumentStore(client, metrics, budget_s=BUDGET_S, **options)
    documents: dict[str, Document[dict[str, Any]]] = {
        name: Document(
            store, name, schema=1, parse=dict[str, Any], initial={}, dump=dict, metrics=metrics
        )
        for name in NAMES
    }
    following = asyncio.create_task(store.run())

    async def stop() -> None:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()

    stack.push_async_callback(stop)
    return store, documents


async def test_documents_on_all_masters_are_written_and_followed(cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        one_store, one = await replica(stack, cluster.url)
        _, two = await replica(stack, cluster.url)
        for name in NAMES:
            await one[name].update(lambda _: {"v": name}, expected=0, action="put", author="ada")  # noqa: B023
        await until(lambda: all(two[name].value == {"v": name} for name in NAMES))
        held = cluster.keys()
        assert min(held) > 0
        with pytest.raises(StaleRevision):
            await two[NAMES[0]].update(dict, expected=0, action="put", author="bob")
        assert len(await one_store.notes(100)) == len(NAMES)


async def test_messages_cross_the_cluster(cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        _, one = await replica(stack, cluster.url, poll_s=3600.0)
        _, two = await replica(stack, cluster.url, poll_s=3600.0)
        await until(lambda: listeners(cluster) == 2)
        for name in NAMES:
            await one[name].update(lambda _: {"v": name}, expected=0, action="put", author="ada")  # noqa: B023
        await until(lambda: all(two[name].value == {"v": name} for name in NAMES))


async def test_exposure_records_go_to_the_cluster(cluster: RedisCluster) -> None:
    sink = StreamSink(connect(cluster.url, max_connections=2, timeout_s=BUDGET_S), max_entries=100)
    record = Exposure(1, "r", "u", "s", 1, "a", "a", "unit", "ok", "engine", 1)
    await sink.write([record] * 5)
    await sink.close()
    assert sorted(cluster.keys()) == [0, 0, 1]
