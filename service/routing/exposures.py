"""Exposure records: the arm that a unit was assigned to, and the answer that it got.

Each request that is assigned by its ``unit_id`` has one record (pins, the default and the kill
switch assign otherwise). It is one JSON object:

==============  =====================================================================
field           meaning
==============  =====================================================================
``schema``      1; increased when a field changes its meaning
``time_ms``     when it was answered, in milliseconds since 1970-01-01 UTC
``request_id``  of the answer; two records with the same one are duplicates
``unit_id``     as the client sent it
``salt``        of the routing document: the experiment
``revision``    of the routing document
``arm``         the version that the unit was assigned to: analyse by this one
``version``     the version that answered; not ``arm`` if that was not ready
``why``         why that version: ``unit``, or ``fallback`` where it is not the arm
``status``      of the answer (ok, partial, timeout, none, fallback)
``source``      of the answer (engine, memory, redis, coalesced, override, none)
``rewrites``    how many rewrites the answer had
==============  =====================================================================

In Redis each record is an entry of the stream ``requery:exposures`` with the one field ``record``
(``XREAD``, ``XRANGE`` or a consumer group read it). The stream is trimmed to about
``REQUERY_EXPOSURES_MAX_ENTRIES`` entries, so read it steadily. In the log each record is one line
of level ``info`` with ``"event": "exposure"`` and the same fields.

``unit_id`` can be personal data: send a pseudonym, or set ``REQUERY_EXPOSURES=off``.

Recording takes a few microseconds and never blocks: records go to a bounded queue, and are dropped
and counted when it is full. A batch that could not be written is retried for a while; then a record
may be written twice, with the same request id.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import orjson
import structlog

from service.redis.client import FAULTS, AnyRedis, disconnect
from service.resilience.outage_log import OutageLogThrottle
from service.routing.metrics import ExposureMetrics

_log = structlog.get_logger(component="exposures")

SCHEMA = 1
STREAM = "requery:exposures"
Mode = Literal["auto", "off", "log", "redis"]


class Exposure(NamedTuple):
    """One record; the module docstring explains the fields."""

    time_ms: int
    request_id: str
    unit_id: str
    salt: str
    revision: int
    arm: str
    version: str
    why: Literal["unit", "fallback"]
    status: str
    source: str
    rewrites: int


def as_json(exposure: Exposure) -> dict[str, Any]:
    """The record as a JSON object."""
    return {"schema": SCHEMA, **exposure._asdict()}


class Sink(Protocol):
    """Where records go."""

    async def write(self, batch: Sequence[Exposure]) -> None:
        """Write all of them; raises if some may not be written."""

    async def close(self) -> None:
        """Close connections."""


class LogSink:
    """One line of the log each."""

    async def write(self, batch: Sequence[Exposure]) -> None:
        """Write all of them, yielding to requests after every few."""
        for i, exposure in enumerate(batch, start=1):
            _log.info("exposure", **as_json(exposure))
            if i % 20 == 0:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Do nothing: there is no connection."""


class StreamSink:
    """Entries of a Redis stream.

    Args:
        client: of ``redis.asyncio``; closed with the sink.
        max_entries: approximate length of the stream.
    """

    def __init__(self, client: AnyRedis, *, max_entries: int) -> None:
        # The stubs do not say whether a command must be awaited.
        self._client: Any = client
        self._max_entries = max_entries

    async def write(self, batch: Sequence[Exposure]) -> None:
        """Add all of them in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for exposure in batch:
            pipeline.xadd(
                STREAM, {"record": _encoded(exposure)}, maxlen=self._max_entries, approximate=True
            )
        await pipeline.execute()

    async def close(self) -> None:
        """Close all connections."""
        await disconnect(self._client)


class Exposures:
    """Queues records on the hot path and writes them in the background.

    Args:
        sink: where they are written; ``None`` disables recording.
        metrics: count records.
        max_queued: limit on queued records; more are dropped.
        batch: limit on the records written at once.
        linger_s: how long a batch is collected.
        tries: attempts to write a batch, ``pause_s`` apart.
        pause_s: see ``tries``.
    """

    def __init__(
        self,
        sink: Sink | None,
        metrics: ExposureMetrics,
        *,
        max_queued: int = 10_000,
        batch: int = 200,
        linger_s: float = 0.2,
        tries: int = 10,
        pause_s: float = 1.0,
    ) -> None:
        self._sink = sink
        self._metrics = metrics
        self._max_queued = max_queued
        self._batch = batch
        self._linger_s = linger_s
        self._tries = tries
        self._pause_s = pause_s
        self._queue: deque[Exposure] = deque()
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._outage = OutageLogThrottle()
        metrics.watch(lambda: len(self._queue))

    @property
    def on(self) -> bool:
        """Whether records are written at all."""
        return self._sink is not None

    def record(
        self,
        *,
        request_id: str,
        unit_id: str,
        salt: str,
        revision: int,
        arm: str,
        version: str,
        status: str,
        source: str,
        rewrites: int,
    ) -> None:
        """Queue one record; never blocks and never raises."""
        if self._sink is None:
            return
        if len(self._queue) >= self._max_queued:
            self._metrics.dropped.inc()
            return
        self._queue.append(
            Exposure(
                int(time.time() * 1000), request_id, unit_id, salt, revision, arm, version,
                "unit" if version == arm else "fallback", status, source, rewrites,
            )
        )  # fmt: skip
        self._some.set()

    def start(self) -> None:
        """Begin to write."""
        if self._sink is not None and self._task is None:
            self._task = asyncio.create_task(self._run(self._sink))

    async def close(self, *, within_s: float = 2.0) -> None:
        """Write what is queued, for at most ``within_s`` seconds; idempotent."""
        task, self._task = self._task, None
        if task is None or self._sink is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        last = asyncio.create_task(self._write_rest(self._sink))
        await asyncio.wait((last,), timeout=within_s)
        if not last.done():
            last.cancel()
            await asyncio.gather(last, return_exceptions=True)
        self._metrics.failed.inc(len(self._queue))
        self._queue.clear()
        await self._sink.close()

    async def _run(self, sink: Sink) -> None:
        failures = 0
        while not _cancelled():
            await self._some.wait()
            if len(self._queue) < self._batch:
                await asyncio.sleep(self._linger_s)
            if await self._write(sink):
                failures = 0
                continue
            failures += 1
            if failures >= self._tries:
                failures = 0
                self._metrics.failed.inc(self._take(self._batch))
            await asyncio.sleep(self._pause_s)

    async def _write(self, sink: Sink) -> bool:
        """Write one batch, and remove it from the queue once it is written."""
        batch = [self._queue[i] for i in range(min(self._batch, len(self._queue)))]
        try:
            await sink.write(batch)
        except (*FAULTS, TimeoutError) as error:
            self._log_outage(ok=False, why=f"{type(error).__name__}: {error}")
            return False
        except Exception:  # noqa: BLE001 - one bad record must not stop the others
            _log.exception("exposures_lost", records=len(batch))
            self._metrics.failed.inc(self._take(len(batch)))
            return True
        self._log_outage(ok=True)
        self._metrics.written.inc(self._take(len(batch)))
        return True

    async def _write_rest(self, sink: Sink) -> None:
        while self._queue and await self._write(sink):
            pass

    def _take(self, n: int) -> int:
        """Remove the first ``n`` records from the queue; returns how many there were."""
        taken = min(n, len(self._queue))
        for _ in range(taken):
            self._queue.popleft()
        if not self._queue:
            self._some.clear()
        return taken

    def _log_outage(self, *, ok: bool, why: str = "") -> None:
        if ok and self._outage.recovered():
            _log.info("exposures_back", detail="records are written again")
        elif not ok and self._outage.failed():
            _log.warning(
                "exposures_not_written",
                detail="records wait, and are dropped when there are too many",
                reason=why,
                times=self._outage.times,
            )


def choose_sink(mode: Mode, client: AnyRedis | None, *, max_entries: int) -> Sink | None:
    """The sink for a setting.

    ``auto`` takes the stream if there is a Redis, else the log: a stream is bounded, and a log that
    holds ids of shoppers may be kept for long.

    Args:
        mode: as in ``REQUERY_EXPOSURES``.
        client: of ``redis.asyncio``; ``None`` without Redis.
        max_entries: approximate length of the stream.

    Raises:
        ValueError: the mode is ``redis`` and there is no Redis.
    """
    if mode == "auto":
        mode = "log" if client is None else "redis"
    if mode == "off":
        return None
    if mode == "log":
        return LogSink()
    if client is None:
        raise ValueError("REQUERY_EXPOSURES=redis needs REQUERY_REDIS_URL; set it, or take 'log'")
    return StreamSink(client, max_entries=max_entries)


def _encoded(exposure: Exposure) -> bytes:
    try:
        return orjson.dumps(as_json(exposure))
    except TypeError:  # a lone surrogate
        return json.dumps(as_json(exposure)).encode("ascii")


def _cancelled() -> bool:
    """Whether this task was cancelled; redis-py may have swallowed the exception."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
