"""Overrides of two processes on one real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from service.control.metrics import ControlMetrics
from service.control.redis_store import RedisDocumentStore
from service.overrides.live import Override
from service.redis.client import connect
from tests.support.overrides import World, block, pin, term
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.integration


@asynccontextmanager
async def process(server: RedisServer) -> AsyncIterator[World]:
    """What one service process has; it follows the document store until the block ends."""
    client = connect(server.url, max_connections=4, timeout_s=10)
    store = RedisDocumentStore(client, ControlMetrics(CollectorRegistry()), budget_s=10)
    world = World(store=store)
    following = asyncio.create_task(store.run())
    await world.document.refresh()
    try:
        yield world
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


async def test_a_change_reaches_the_other_process_and_outlives_both(server: RedisServer) -> None:
    async with process(server) as here, process(server) as there:
        name = await here.add(block("stake"))
        await until(lambda: there.live.of("stake") == Override("blocked"))
        await there.add(term("gun"))
        await until(lambda: here.live.blocked("nail gun"))
        await there.editor.remove(name, author="bob")
        await until(lambda: here.live.of("stake") is None)
        await here.add(pin("stake", "steel stake"))
    async with process(server) as later:
        assert later.live.of("stake") == Override("pinned", ("steel stake",))
        assert later.live.blocked("guns")


async def test_changes_by_both_at_once_are_all_kept(server: RedisServer) -> None:
    async with process(server) as here, process(server) as there:
        await asyncio.gather(*(here.add(block(f"a {i}")) for i in range(10)))

        async def alternate(world: World, word: str) -> None:
            for i in range(10):
                await world.add(block(f"{word} {i}"))

        await asyncio.gather(alternate(here, "b"), alternate(there, "c"))
        await until(lambda: len(here.document.value) == len(there.document.value) == 30)
