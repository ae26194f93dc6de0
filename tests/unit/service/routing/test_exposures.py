"""Exposure records: what is written, and what a slow or broken place for them may cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError

from service.redis.client import connect
from service.routing.exposures import (
    SCHEMA,
    Exposure,
    Exposures,
    LogSink,
    Mode,
    StreamSink,
    as_json,
    choose_sink,
)
from service.routing.metrics import ExposureMetrics
from tests.support.waiting import until


class Recording:
    """A sink that keeps what it is given, and fails or waits when told to."""

    def __init__(self) -> None:
        self.batches: list[list[Exposure]] = []
        self.faults: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    @property
    def ids(self) -> list[str]:
        return [record.request_id for batch in self.batches for record in batch]

    async def write(self, batch: Sequence[Exposure]) -> None:
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.batches.append(list(batch))

    async def close(self) -> None:
        self.closed = True


class World:
    def __init__(self) -> None:
        self.sink = Recording()
        self.registry = CollectorRegistry()
        self.metrics = ExposureMetrics(self.registry)
        self.exposures: Exposures

    def open(self, **options: Any) -> None:
        options = {"linger_s": 0.0, "pause_s": 0.0} | options
        self.exposures = Exposures(self.sink, self.metrics, **options)

    def record(self, request_id: str = "r-1", **fields: Any) -> None:
        known: dict[str, Any] = {
            "unit_id": "u-1", "salt": "s", "revision": 3, "arm": "a", "version": "a",
            "status": "ok", "source": "engine", "rewrites": 2,
        }  # fmt: skip
        self.exposures.record(request_id=request_id, **(known | fields))

    def count(self, result: str) -> float | None:
        return self.registry.get_sample_value("requery_exposures_total", {"result": result})

    def counted(self, result: str, n: int) -> Callable[[], bool]:
        return lambda: self.count(result) == n


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.open()
    yield world
    world.sink.gate.set()
    await world.exposures.close()


async def test_a_record_says_everything_that_an_analysis_needs(world: World) -> None:
    world.record(unit_id="ünit")
    world.exposures.start()
    await until(lambda: bool(world.sink.batches))
    written = as_json(world.sink.batches[0][0])
    assert written.pop("time_ms") > 1_600_000_000_000
    assert written == {
        "schema": SCHEMA, "request_id": "r-1", "unit_id": "ünit", "salt": "s", "revision": 3,
        "arm": "a", "version": "a", "why": "unit", "status": "ok", "source": "engine",
        "rewrites": 2,
    }  # fmt: skip
    assert world.count("written") == 1


async def test_a_version_that_stood_in_for_the_arm_is_told(world: World) -> None:
    world.record(arm="a", version="default")
    world.exposures.start()
    await until(lambda: bool(world.sink.batches))
    assert world.sink.batches[0][0].why == "fallback"


async def test_records_are_written_in_order_and_in_batches(world: World) -> None:
    world.open(batch=4)
    for i in range(10):
        world.record(str(i))
    world.exposures.start()
    await until(world.counted("written", 10))
    assert world.sink.ids == [str(i) for i in range(10)]
    assert [len(batch) for batch in world.sink.batches] == [4, 4, 2]


async def test_while_nothing_can_be_written_records_are_dropped_and_counted(world: World) -> None:
    world.open(max_queued=5)
    world.sink.gate.clear()
    world.exposures.start()
    for i in range(8):
        world.record(str(i))
    assert world.count("dropped") == 3
    assert world.registry.get_sample_value("requery_exposures_queued") == 5
    world.sink.gate.set()
    await until(world.counted("written", 5))
    assert world.sink.ids == ["0", "1", "2", "3", "4"]


async def test_a_batch_that_failed_is_tried_again(world: World) -> None:
    world.sink.faults = [RedisConnectionError("gone"), TimeoutError(), OSError("no")]
    with structlog.testing.capture_logs() as lines:
        world.record("a")
        world.exposures.start()
        world.record("b")
        await until(world.counted("written", 2))
    assert world.sink.ids == ["a", "b"]
    assert world.count("failed") == 0
    assert [line["event"] for line in lines] == ["exposures_not_written", "exposures_back"]


async def test_a_batch_that_fails_for_long_is_given_up(world: World) -> None:
    world.open(tries=3)
    world.sink.faults = [RedisConnectionError("gone")] * 3
    world.record("a")
    world.exposures.start()
    await until(world.counted("failed", 1))
    world.record("b")
    await until(world.counted("written", 1))
    assert world.sink.ids == ["b"]


async def test_a_batch_that_nobody_can_write_does_not_stop_the_others(world: World) -> None:
    world.open(batch=1)
    world.sink.faults = [KeyError("a fault of ours")]
    world.record("a")
    world.record("b")
    world.exposures.start()
    await until(world.counted("written", 1))
    assert (world.sink.ids, world.count("failed")) == (["b"], 1)


async def test_closing_writes_what_waits(world: World) -> None:
    world.open(linger_s=3600, batch=2)
    world.record("a")
    world.exposures.start()
    await asyncio.sleep(0)
    await world.exposures.close()
    await world.exposures.close()
    assert (world.sink.ids, world.sink.closed) == (["a"], True)


async def test_closing_waits_for_no_sink_that_hangs(world: World) -> None:
    world.sink.gate.clear()
    world.record("a")
    world.exposures.start()
    await world.exposures.close(within_s=0.01)
    assert (world.count("failed"), world.sink.closed) == (1, True)


async def test_without_a_sink_nothing_is_kept() -> None:
    world = World()
    world.exposures = Exposures(None, world.metrics)
    world.exposures.start()
    world.record()
    assert not world.exposures.on
    assert world.registry.get_sample_value("requery_exposures_queued") == 0
    await world.exposures.close()


async def test_in_the_log_each_record_is_one_line() -> None:
    record = Exposure(1, "r", "\ud800", "s", 1, "a", "a", "unit", "ok", "engine", 1)
    with structlog.testing.capture_logs() as lines:
        await LogSink().write([record] * 25)
    assert len(lines) == 25
    assert lines[0] == {
        "event": "exposure", "log_level": "info", "component": "exposures", **as_json(record),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "redis", "kind"),
    [
        ("auto", False, LogSink),
        ("auto", True, StreamSink),
        ("log", True, LogSink),
        ("redis", True, StreamSink),
        ("off", True, type(None)),
    ],
)
async def test_the_setting_chooses_where_records_go(mode: Mode, redis: bool, kind: type) -> None:
    client = connect("redis://localhost:1", max_connections=1, timeout_s=1.0) if redis else None
    assert isinstance(choose_sink(mode, client, max_entries=10), kind)


def test_a_stream_without_redis_is_refused() -> None:
    with pytest.raises(ValueError, match="REQUERY_REDIS_URL"):
        choose_sink("redis", None, max_entries=10)
