"""Control documents on a real Redis: followed by all replicas, whatever happens to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client import CollectorRegistry

from service.api.routing import ControlApi
from service.control.documents import Document
from service.control.redis_store import AUDIT_KEY, KEY_PREFIX
from service.control.store import AUDIT_ENTRIES
from service.errors import DocumentStoreUnavailable, NewerSchema, StaleRevision
from service.redis.client import connect
from service.routing.document import Routing
from service.routing.exposures import STREAM, Exposures, StreamSink
from service.routing.metrics import ExposureMetrics
from service.routing.router import Router
from tests.support.auth import open_guard
from tests.support.calling import calling, mounted
from tests.support.document_store import NEVER_S, Replica, listeners, replicas
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration

KEY = KEY_PREFIX + "routing"


class RoutingReplica(Replica):
    """A replica with the routing document."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.routing = Document(
            self.store,
            "routing",
            schema=1,
            parse=Routing.parse,
            initial=plan("initial"),
            dump=Routing.dump,
            metrics=self.metrics,
        )

    @property
    def salt(self) -> str:
        return self.routing.value.salt

    async def put(self, salt: str, *, expected: int | None = None) -> int:
        return await self.routing.update(
            lambda _: plan(salt), expected=expected, action="routing.put", author="ada"
        )


Open = Callable[..., RoutingReplica]


def plan(salt: str, **fields: Any) -> Routing:
    return Routing.parse({"default": "a", "weights": {"a": 0.5, "b": 0.5}, "salt": salt} | fields)


@pytest.fixture
async def replica(server: RedisServer) -> AsyncIterator[Open]:
    async with replicas(RoutingReplica) as start:
        yield partial(start, server.url)


class AnyVersion:
    """Every version is known and ready."""

    def get(self, name: str) -> object:
        return name

    def ready_names(self) -> Collection[str]:
        return ("a", "b")


def asking(one: RoutingReplica, router: Router) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A caller of the control routes of a replica."""
    api = ControlApi(
        routing=one.routing, versions=AnyVersion(), document_store=one.store, assigner=router,
        guard=open_guard(), reader=open_guard(),
    )  # fmt: skip
    return calling(mounted(api.router()))


def outage(server: RedisServer) -> None:
    """Kill it, and let it know everything when it starts again."""
    with server.client() as client:
        client.save()
    server.stop()


async def test_a_change_is_told_to_all_replicas_by_message(
    server: RedisServer, replica: Open
) -> None:
    one, two = replica(poll_s=NEVER_S), replica(poll_s=NEVER_S)
    await until(lambda: listeners(server) == 2)
    await one.put("x", expected=0)
    assert one.salt == "x"
    await until(lambda: two.salt == "x")
    assert two.routing.revision == 1
    units = [f"u{i}" for i in range(2000)]
    left, right = Router(one.routing), Router(two.routing)
    assert [left.assign(pin=None, unit_id=u) for u in units] == [
        right.assign(pin=None, unit_id=u) for u in units
    ]


async def test_a_change_of_which_no_message_came_is_found_by_looking(
    server: RedisServer, replica: Open
) -> None:
    one, two = replica(), replica()
    await one.put("x", expected=0)
    await until(lambda: two.salt == "x")
    with server.client() as client:
        value = {"schema": 1, "revision": 2, "body": plan("silent").dump()}
        client.set(KEY, orjson.dumps(value))
    await until(lambda: one.salt == two.salt == "silent")
    assert one.routing.revision == 2


async def test_of_writers_at_the_same_time_exactly_one_wins_each_revision(replica: Open) -> None:
    writers = [replica(follows=False) for _ in range(4)]
    for revision in range(10):
        results = await asyncio.gather(
            *(one.put(f"{i}-{revision}", expected=revision) for i, one in enumerate(writers)),
            return_exceptions=True,
        )
        won = [i for i, result in enumerate(results) if result == revision + 1]
        assert len(won) == 1, results
        lost = [result for result in results if isinstance(result, StaleRevision)]
        assert [error.current for error in lost] == [revision + 1] * 3
        await writers[0].routing.refresh()
        assert writers[0].salt == f"{won[0]}-{revision}"


async def test_updates_by_two_replicas_lose_nothing(replica: Open) -> None:
    one, two = replica(follows=False), replica(follows=False)

    async def add(where: RoutingReplica, name: str) -> None:
        await where.routing.update(
            lambda now: now.model_copy(update={"salt": now.salt + name}),
            action="add",
            author="ada",
        )

    await asyncio.gather(add(one, "+1"), add(two, "+2"))
    await one.routing.refresh()
    assert one.salt in ("initial+1+2", "initial+2+1")


async def test_a_redis_that_was_killed_and_comes_back_is_followed_again(
    server: RedisServer, replica: Open
) -> None:
    one, two = replica(), replica()
    await one.put("before", expected=0)
    await until(lambda: two.salt == "before")
    outage(server)
    with pytest.raises(DocumentStoreUnavailable):
        await one.put("lost", expected=1)
    await until(lambda: two.metric("requery_control_board_up") == 0)
    assert (one.salt, two.salt) == ("before", "before")
    server.start()
    await until(lambda: two.metric("requery_control_board_up") == 1)
    assert await one.put("after", expected=1) == 2
    await until(lambda: two.salt == "after")


async def test_messages_come_again_after_a_restart(server: RedisServer, replica: Open) -> None:
    one, two = replica(), replica()
    await one.put("before", expected=0)
    await until(lambda: two.salt == "before" and listeners(server) == 2)
    outage(server)
    await until(lambda: two.metric("requery_control_board_up") == 0)
    server.start()
    await until(lambda: listeners(server) == 2)


async def test_a_replica_that_starts_without_redis_takes_over_once_it_is_there(
    server: RedisServer, replica: Open
) -> None:
    one = replica()
    await one.put("x", expected=0)
    outage(server)
    late = replica()
    await late.routing.refresh()
    assert (late.salt, late.routing.revision) == ("initial", 0)
    server.start()
    await until(lambda: late.salt == "x")


async def test_a_redis_that_hangs_is_given_up_and_followed_again(
    server: RedisServer, replica: Open
) -> None:
    one = replica()
    hasty = replica(budget_s=0.2)
    await one.put("before", expected=0)
    await until(lambda: hasty.salt == "before")
    server.freeze()
    try:
        with pytest.raises(DocumentStoreUnavailable):
            await hasty.put("x", expected=1)
        with pytest.raises(DocumentStoreUnavailable):
            await hasty.routing.update(lambda now: now, action="routing.kill", author="ada")
    finally:
        server.thaw()
    await one.routing.refresh()
    await one.put("after", expected=one.routing.revision)
    await until(lambda: hasty.salt == "after")


@pytest.mark.parametrize("outage_of", [RedisServer.stop, RedisServer.freeze])
async def test_a_replica_is_stopped_although_redis_is_gone(
    server: RedisServer, replica: Open, outage_of: Callable[[RedisServer], None]
) -> None:
    one = replica(budget_s=0.2)
    await one.put("before", expected=0)
    router = Router(one.routing)
    body = {"version": None, "reason": "fire"}
    async with asking(one, router) as client:
        outage_of(server)
        response = await client.put("/routing/kill", json=body)
        assert response.status_code == 503
        assert "PUT /routing/kill/local" in response.json()["detail"]
        assert not router.assign(pin=None, unit_id=None).off
        response = await client.put("/routing/kill/local", json=body)
        assert (response.status_code, response.json()["local_kill"]) == (200, body)
        assert router.assign(pin="a", unit_id="u").off
        response = await client.delete("/routing/kill/local")
        assert (response.status_code, response.json()["local_kill"]) == (200, None)
        assert not router.assign(pin="a", unit_id="u").off
    server.thaw() if outage_of is RedisServer.freeze else server.start()
    await until(lambda: one.metric("requery_control_board_up") == 1)
    async with asking(one, router) as client:
        while (await client.put("/routing/kill", json=body)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await client.put("/routing/kill/local", json=body)
        # The switch waits for the trail only so long, but what is on its way gets there.
        actions: set[str] = set()
        while not {"routing.kill", "routing.kill_local"} <= actions:
            actions = {one["action"] for one in (await client.get("/audit")).json()["entries"]}


async def test_a_flushed_redis_leaves_the_last_good_state_and_nobody_writes_it_back(
    server: RedisServer, replica: Open
) -> None:
    one, two = replica(), replica()
    await one.put("x", expected=0)
    await until(lambda: two.salt == "x")
    with server.client() as client:
        client.flushall()
    for each in (one, two):
        await until(lambda: each.routing.revision == 0)  # noqa: B023 - waited for at once
        assert each.salt == "x"
        assert each.metric("requery_control_document_missing", document="routing") == 1
    with server.client() as client:
        assert client.keys() == []
    # Written again, it goes on from where it was, so that no revision means two things.
    assert await two.put("y", expected=0) == 2
    await until(lambda: one.salt == "y")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"[]",
        b'{"schema": 1}',
        b'{"schema": "1", "revision": 7, "body": {}}',
        b'{"schema": 1, "revision": 0, "body": {}}',
        b'{"schema": 1, "revision": true, "body": {}}',
        b'{"schema": 1, "revision": 7, "body": []}',
    ],
)
async def test_garbage_leaves_the_last_good_state_and_can_be_overwritten(
    server: RedisServer, replica: Open, garbage: bytes
) -> None:
    one, two = replica(), replica()
    await one.put("x", expected=0)
    await until(lambda: two.salt == "x")
    with server.client() as client:
        client.set(KEY, garbage)
    refused = {"document": "routing", "reason": "unreadable"}
    for each in (one, two):
        await until(
            lambda: each.metric("requery_control_documents_refused_total", **refused) == 1  # noqa: B023
        )
        assert (each.salt, each.routing.revision) == ("x", 1)
    assert await two.put("y", expected=1) == 2
    await until(lambda: one.salt == "y")


async def test_a_document_of_another_kind_of_key_does_no_harm(
    server: RedisServer, replica: Open
) -> None:
    one = replica()
    await one.put("x", expected=0)
    with server.client() as client:
        client.delete(KEY)
        client.lpush(KEY, "x")
    await until(lambda: one.metric("requery_control_board_up") == 0)
    assert one.salt == "x"
    with pytest.raises(DocumentStoreUnavailable):
        await one.put("y")
    with server.client() as client:
        client.delete(KEY)
    await one.put("y")
    assert one.salt == "y"


async def test_a_newer_schema_leaves_the_last_good_state_and_is_not_overwritten(
    server: RedisServer, replica: Open
) -> None:
    one = replica()
    await one.put("x", expected=0)
    newer = orjson.dumps({"schema": 2, "revision": 2, "body": {"regions": {}}})
    with server.client() as client:
        client.set(KEY, newer)
    refused = {"document": "routing", "reason": "newer_schema"}
    await until(lambda: one.metric("requery_control_documents_refused_total", **refused) == 1)
    assert (one.salt, one.routing.revision, one.routing.stored) == ("x", 1, 2)
    for expected in (None, 2):
        with pytest.raises(NewerSchema):
            await one.put("y", expected=expected)
    with server.client() as client:
        assert client.get(KEY) == newer


async def test_the_audit_trail_is_shared_bounded_and_newest_first(
    server: RedisServer, replica: Open
) -> None:
    one, two = replica(follows=False), replica(follows=False)
    await one.put("x", expected=0)
    await two.put("y", expected=1)
    newest, oldest = await one.store.notes(10)
    assert (newest["after"]["salt"], oldest["after"]["salt"]) == ("y", "x")
    await asyncio.gather(*(one.store.note({"i": i}) for i in range(20)))
    with server.client() as client:
        client.rpush(AUDIT_KEY, *[b"{}"] * AUDIT_ENTRIES)
        client.lpush(AUDIT_KEY, b"not json")
    await one.store.note({"last": True})
    with server.client() as client:
        assert client.llen(AUDIT_KEY) == AUDIT_ENTRIES
    found = await two.store.notes(AUDIT_ENTRIES)
    assert found[0] == {"last": True}
    assert len(found) == AUDIT_ENTRIES - 1


async def test_looking_does_not_read_a_long_document_again_and_again(
    server: RedisServer, replica: Open
) -> None:
    one = replica(poll_s=0.01)
    await one.put("x", expected=0)
    with server.client() as client:
        before = client.info("commandstats")

        def calls(command: str) -> int:
            now = client.info("commandstats")
            name = f"cmdstat_{command}"
            return int(
                now.get(name, {"calls": 0})["calls"] - before.get(name, {"calls": 0})["calls"]
            )

        await until(lambda: calls("getrange") >= 20)
        # The look that follows the write's own message reads it once more.
        assert calls("get") <= 2


async def test_exposure_records_go_to_a_bounded_stream(server: RedisServer) -> None:
    registry = CollectorRegistry()
    exposures = Exposures(
        StreamSink(connect(server.url, max_connections=2, timeout_s=10.0), max_entries=100),
        ExposureMetrics(registry),
        linger_s=0.0,
    )
    exposures.start()
    for i in range(1000):
        exposures.record(
            request_id=f"r-{i}", unit_id="ü\ud800", salt="s", revision=1, arm="a", version="a",
            status="ok", source="engine", rewrites=1,
        )  # fmt: skip
    await exposures.close(within_s=30.0)
    assert registry.get_sample_value("requery_exposures_total", {"result": "written"}) == 1000
    with server.client() as client:
        assert client.xlen(STREAM) < 1000
        ((_, fields),) = client.xrevrange(STREAM, count=1)
    record = orjson.loads(fields[b"record"].replace(b"\\ud800", b""))
    assert (record["request_id"], record["unit_id"], record["schema"]) == ("r-999", "ü", 1)
