"""Overrides of two processes on one real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.overrides.live import Override
from tests.support.document_store import Replica, replicas
from tests.support.overrides import World, block, pin, term
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration


@asynccontextmanager
async def process(server: RedisServer) -> AsyncIterator[World]:
    """What one service process has; it follows the document store until the block ends."""
    async with replicas(Replica) as start:
        world = World(store=start(server.url).store)
        await world.document.refresh()
        yield world


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
