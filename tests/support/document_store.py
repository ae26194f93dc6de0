"""Replicas that follow one Redis document store, with budgets that a busy machine keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.redis_store import CHANNEL, RedisDocumentStore
from service.redis.client import connect
from tests.support.redis_server import RedisServer

NEVER_S = 3600.0
Body = dict[str, Any]


class Replica:
    """The document store of one process."""

    def __init__(self, url: str, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ControlMetrics(self.registry)
        client = connect(url, max_connections=8, timeout_s=10.0)
        self.store = RedisDocumentStore(client, self.metrics, **({"budget_s": 10.0} | options))
        self._following: asyncio.Task[None] | None = None

    def document(self, name: str) -> Document[Body]:
        return Document(
            self.store, name, schema=1, parse=Body, initial={}, dump=Body, metrics=self.metrics
        )

    def follow(self) -> None:
        self._following = asyncio.create_task(self.store.run())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.store.close()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


R = TypeVar("R", bound=Replica)


@asynccontextmanager
async def replicas(kind: type[R]) -> AsyncIterator[Callable[..., R]]:
    """Opens replicas: ``start(url, follows=..., **options)``; closes them at the end."""
    async with AsyncExitStack() as stack:

        def start(url: str, *, follows: bool = True, **options: Any) -> R:
            opened = kind(url, **options)
            stack.push_async_callback(opened.close)
            if follows:
                opened.follow()
            return opened

        yield start


def listeners(*nodes: RedisServer) -> int:
    """How many replicas listen for messages."""
    total = 0
    for node in nodes:
        with node.client() as client:
            total += int(client.pubsub_numsub(CHANNEL)[0][1])
    return total
