"""Control documents behind a real sentinel, which makes another server the master."""

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
from service.control.redis_store import RedisDocumentStore
from service.errors import DocumentStoreUnavailable, StaleRevision
from service.redis.client import connect
from tests.support.redis_sentinel import SERVICE, RedisSentinel

pytestmark = pytest.mark.integration

BUDGET_S = 10.0
Body = dict[str, Any]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[RedisSentinel]:
    watched = RedisSentinel(tmp_path)
    try:
        watched.start()
        yield watched
    finally:
        watched.stop()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until ``holds()``; the test's own timeout bounds it."""
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


async def replica(stack: AsyncExitStack, url: str) -> Document[Body]:
    """The document of a process that follows the store."""
    metrics = ControlMetrics(CollectorRegistry())
    store = RedisDocumentStore(
        connect(url, max_connections=8, timeout_s=BUDGET_S), metrics, budget_s=BUDGET_S
    )
    document: Document[Body] = Document(
        store, "doc", schema=1, parse=Body, initial={}, dump=Body, metrics=metrics
    )
    following = asyncio.create_task(store.run())

    async def stop() -> None:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()

    stack.push_async_callback(stop)
    return document


async def put(document: Document[Body], value: str) -> None:
    """Write until it is there; the test's own timeout bounds it."""
    while document.value != {"v": value}:
        try:
            await document.update(lambda _: {"v": value}, action="put", author="ada")
        except (DocumentStoreUnavailable, StaleRevision):
            await asyncio.sleep(0.1)


async def test_when_the_master_dies_the_next_one_is_followed(watched: RedisSentinel) -> None:
    async with AsyncExitStack() as stack:
        one, two = await replica(stack, watched.url), await replica(stack, watched.url)
        await put(one, "before")
        await until(lambda: two.value == {"v": "before"})
        watched.settle()
        watched.master.stop()
        await put(one, "after")
        await until(lambda: two.value == {"v": "after"})
        assert one.revision == two.revision > 1
        with watched.replica.client() as client:
            assert client.role()[0] == b"master"


async def test_a_master_that_was_demoted_is_left_for_the_new_one(watched: RedisSentinel) -> None:
    async with AsyncExitStack() as stack:
        one, two = await replica(stack, watched.url), await replica(stack, watched.url)
        await put(one, "before")
        await until(lambda: two.value == {"v": "before"})
        watched.settle()
        with watched.sentinel.client() as client:
            client.sentinel_failover(SERVICE)
        with watched.master.client() as client:
            await until(lambda: client.role()[0] == b"slave")
        # Connections to the old master are as good as ever, but it no longer takes writes.
        await put(one, "after")
        await until(lambda: two.value == {"v": "after"})
