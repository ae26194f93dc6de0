"""The Redis document store on a client that misbehaves as real ones do now and then."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
import structlog
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from service.control.metrics import ControlMetrics
from service.control.redis_store import KEY_PREFIX, RedisDocumentStore
from service.control.store import Absent, Stored
from service.errors import DocumentStoreUnavailable
from service.redis.bounded import BoundedCommands
from tests.support.waiting import turns, until


class Client:
    """One key of Redis; each look may be answered late, or swallow a cancellation."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.looks = 0
        self.swallows = False
        self.mute = False
        self.look_fault: Exception | None = None
        self.script_fault: Exception | None = None
        self.connection_pool = self
        self.disconnected = 0
        self.pubsub_fault: Exception = RedisConnectionError("no messages here")

    async def get(self, key: str) -> bytes | None:
        assert key == f"{KEY_PREFIX}doc"
        answer = self.value  # what the server said; it may take long to get here
        await self._arrive()
        return answer

    async def getrange(self, key: str, start: int, end: int) -> bytes:
        answer = (self.value or b"")[start : end + 1]
        await self._arrive()
        return answer

    async def eval(self, script: str, keys: int, *args: Any) -> int:
        if self.script_fault is not None:
            raise self.script_fault
        _key, _state, old, new = args
        if (self.value or b"") != old:
            return 0
        self.value = new
        return 1

    async def publish(self, channel: str, name: str) -> int:
        if self.mute:
            raise RedisConnectionError("not now")
        return 0

    def pubsub(self, **_: object) -> Any:
        raise self.pubsub_fault

    async def disconnect(self) -> None:
        self.disconnected += 1

    async def _arrive(self) -> None:
        self.looks += 1
        if self.look_fault is not None:
            raise self.look_fault
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            if not self.swallows:
                raise


def open_store(
    client: Client, *, budget_s: float = 60.0
) -> tuple[RedisDocumentStore, list[Stored | Absent]]:
    metrics = ControlMetrics(CollectorRegistry())
    store = RedisDocumentStore(client, metrics, budget_s=budget_s, poll_s=0.001)  # type: ignore[arg-type]
    told: list[Stored | Absent] = []
    store.subscribe("doc", told.append)
    return store, told


async def test_following_ends_although_the_client_swallows_the_cancellation() -> None:
    client = Client()
    store, _ = open_store(client)
    following = asyncio.create_task(store.run())
    await until(lambda: client.looks > 0)
    client.swallows = True
    client.gate.clear()
    looks = client.looks
    await until(lambda: client.looks > looks)
    following.cancel()
    await asyncio.wait((following,))
    assert following.done()


async def test_a_client_without_messages_is_followed_by_looking() -> None:
    client = Client()
    client.pubsub_fault = AttributeError("this client has no pubsub")
    store, told = open_store(client)
    following = asyncio.create_task(store.run())
    await until(lambda: told == [Absent.GONE])
    client.value = orjson.dumps({"schema": 1, "revision": 3, "body": {"a": 1}})
    await until(lambda: len(told) == 2)
    assert told[1] == Stored(1, 3, {"a": 1})
    following.cancel()
    await asyncio.wait((following,))


async def test_a_look_that_was_answered_late_never_undoes_a_write() -> None:
    client = Client()
    store, told = open_store(client)
    client.gate.clear()
    looking = asyncio.create_task(store.read("doc"))
    await until(lambda: client.looks == 1)
    writing = asyncio.create_task(store.write("doc", {"a": 1}, schema=1, expected=0))
    await turns()
    client.gate.set()
    assert await looking is None
    written = await writing
    assert told == [Absent.GONE, written]


async def test_a_subscriber_that_breaks_keeps_no_other_from_hearing() -> None:
    store, first = open_store(Client())
    last: list[Stored | Absent] = []

    def broken(_: object) -> None:
        raise RuntimeError("no")

    store.subscribe("doc", broken)
    store.subscribe("doc", last.append)
    with structlog.testing.capture_logs() as lines:
        written = await store.write("doc", {"a": 1}, schema=1, expected=0)
    assert first == last == [written]
    assert [line["event"] for line in lines] == ["control_subscriber_failed"]


async def test_two_writes_of_one_revision_differ_at_their_head() -> None:
    # After a flush two processes may write the same revision: a look must tell them apart.
    heads = set()
    for _ in range(2):
        client = Client()
        store, _told = open_store(client)
        await store.write("doc", {"a": 1}, schema=1, expected=0)
        assert client.value is not None
        heads.add(client.value[:128])
    assert len(heads) == 2


async def test_a_change_stands_although_nobody_could_be_told() -> None:
    client = Client()
    client.mute = True
    store, _ = open_store(client)
    written = await store.write("doc", {"a": 1}, schema=1, expected=0)
    assert await store.read("doc") == written


async def test_a_server_that_is_no_longer_the_master_is_left() -> None:
    client = Client()
    client.script_fault = ResponseError(
        "ERR Error running script: @user_script: 8: -READONLY You can't write against a replica."
    )
    store, _ = open_store(client)
    with pytest.raises(DocumentStoreUnavailable, match="may have been made"):
        await store.write("doc", {"a": 1}, schema=1, expected=0)
    assert client.disconnected == 1


async def test_a_server_that_hangs_is_given_up_although_the_client_hears_no_cancellation() -> None:
    client = Client()
    client.swallows = True
    client.gate.clear()
    store, told = open_store(client, budget_s=0.01)
    with pytest.raises(DocumentStoreUnavailable):
        await store.read("doc")
    with pytest.raises(DocumentStoreUnavailable):
        await store.write("doc", {"a": 1}, schema=1, expected=0)
    assert told == []
    client.gate.set()
    assert await store.read("doc") is None
    assert told == [Absent.GONE]


async def test_a_queue_before_a_server_that_hangs_is_given_up_as_a_whole() -> None:
    client = Client()
    client.gate.clear()
    store, _ = open_store(client, budget_s=0.05)
    given_up = await asyncio.gather(*(store.read("doc") for _ in range(10)), return_exceptions=True)
    assert all(isinstance(one, DocumentStoreUnavailable) for one in given_up)
    # One after the other they would have waited ten times as long.
    assert client.looks <= 3
    client.gate.set()


async def test_who_asks_a_server_that_is_down_waits_half_as_long_and_who_follows_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budgets: list[float] = []
    run = BoundedCommands.run

    async def noted(self: BoundedCommands, command: Any, budget_s: float) -> Any:
        budgets.append(budget_s)
        return await run(self, command, budget_s)

    monkeypatch.setattr(BoundedCommands, "run", noted)
    client = Client()
    store, _ = open_store(client, budget_s=60.0)
    await store.read("doc")
    client.look_fault = RedisConnectionError("gone")
    for _ in range(2):
        with pytest.raises(DocumentStoreUnavailable):
            await store.read("doc")
    assert budgets == [60, 60, 30]
    budgets.clear()
    following = asyncio.create_task(store.run())
    await until(lambda: len(budgets) >= 2)
    assert set(budgets) == {60}
    client.look_fault, looks = None, client.looks
    await until(lambda: client.looks > looks + 1)
    following.cancel()
    await asyncio.wait((following,))
    budgets.clear()
    await store.read("doc")
    assert budgets == [60]


async def test_a_server_that_comes_and_goes_is_told_of_once_a_minute() -> None:
    client = Client()
    store, _ = open_store(client)
    with structlog.testing.capture_logs() as lines:
        await store.read("doc")
        for _ in range(5):
            client.look_fault = RedisConnectionError("gone")
            with pytest.raises(DocumentStoreUnavailable):
                await store.read("doc")
            client.look_fault = None
            await store.read("doc")
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("control_board_unavailable", "warning"), ("control_board_back", "info"),
    ]  # fmt: skip
