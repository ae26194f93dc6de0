"""The roster on a real Redis: replicas follow it, and find it again after a restart."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from service.control.metrics import ControlMetrics
from service.control.redis_store import RedisDocumentStore
from service.errors import DocumentStoreUnavailable
from service.redis.client import connect
from service.versions.state import State
from tests.support.fleet import Fleet
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration


def replica(server: RedisServer) -> Fleet:
    client = connect(server.url, max_connections=4, timeout_s=10.0)
    document_store = RedisDocumentStore(client, ControlMetrics(CollectorRegistry()), budget_s=10.0)
    return Fleet(document_store=document_store)


async def test_replicas_follow_and_a_restarted_one_finds_the_roster(server: RedisServer) -> None:
    async with replica(server).following() as one:
        async with replica(server).following() as other:
            assert one.reconciler.durable
            await one.reconciler.load("b", author="ada")
            await other.reconciler.load("c", author="bob")
            await until(lambda: one.engines.running == other.engines.running == ["a", "b", "c"])
            await other.reconciler.unload("b", author="bob")
            await until(lambda: one.engines.running == ["a", "c"])
        async with replica(server).following() as again:
            await until(lambda: again.engines.running == ["a", "c"])


async def test_without_redis_nothing_is_loaded_that_other_replicas_would_not_hear_of(
    server: RedisServer,
) -> None:
    async with replica(server).following() as one:
        await one.reconciler.load("b", author="ada")
        await until(lambda: one.engines.running == ["a", "b"])
        server.stop()
        with pytest.raises(DocumentStoreUnavailable):
            await one.reconciler.load("c", author="ada")
        await until(lambda: one["c"].state is State.AVAILABLE)
        with pytest.raises(DocumentStoreUnavailable):
            await one.reconciler.unload("b", author="ada")
        assert one.engines.running == ["a", "b"]
