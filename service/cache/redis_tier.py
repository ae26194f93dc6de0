"""The shared tier: Redis, with budgets of milliseconds and no retries.

While Redis fails, a circuit breaker skips look-ups and writes; a background task, and no request,
finds out when Redis is back. A second breaker concerns writes alone, because a full or read-only
Redis refuses them and still answers look-ups.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

import structlog
from redis.asyncio import RedisCluster
from redis.exceptions import ClusterDownError, OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.cache import codec
from service.cache.batched_reads import Lookups, one_message
from service.cache.lifetimes import Entry, Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.occupancy import Occupancy, Reading, reading
from service.errors import CacheUnavailable
from service.redis.bounded import BoundedCommands
from service.redis.client import FAULTS, AnyRedis, disconnect, masters
from service.resilience.circuit_breaker import Breaker
from service.resilience.metrics import BreakerMetrics
from service.resilience.outage_log import OutageLogThrottle

T = TypeVar("T")

_CHORE_BUDGET_S = 5.0
"""Longest wait for one step of a purge or a reading, which no request waits for."""
_SCAN_COUNT = 1000
"""Keys that the server scans in one step of a purge, so that it never blocks for long."""
_UNLINK_BATCH = 500
_CONNECT_S = 1.0
"""Longest wait for the connection of a probe, whose ping then has the budget of a read."""
_LAG_S = 0.01
"""A wait that ends this much after its budget is due to a busy process, not to Redis."""
_LONGEST_OPEN_S = 2.0
"""Short, because a probe in the background is cheap and a late recovery is not."""
_SHORTEST_WAIT_S = 0.01
_RECENT = 256
"""Decoded entries that are kept, about 6 kB each, because few queries are most of the traffic."""
_REFUSED_S = 1.0
"""Wait after the first refused write; it doubles with each further one."""
_GOOD_PINGS = 3
_WATCHED = ("get", "put", "ping")
"""Operations whose results count for the breaker."""

_log = structlog.get_logger(component="cache")


class RedisTier:
    """Entries in Redis. Look-ups and writes never raise, and never take longer than their budget.

    Each command is tried once, and its budget covers waiting for a connection, connecting and the
    answer. Loss and return of Redis are logged, once a minute at most.

    Args:
        client: of this cache alone; closed with it. Its own time limit (a second, say) bounds
            commands that are no longer waited for.
        lifetimes: rules of age.
        write_budget_s: bound on one write. Writes happen after the answer.
        read_budget_s: usual budget of a look-up. A look-up that had this long and failed counts
            against Redis, which is back once it answers pings within this time.
        concurrency: most commands under way at a time; no more than the client has connections.
            One of them is kept for probes.
        max_bytes: writes stop while Redis uses more memory than this, for whatever it holds and
            over all masters; ``None`` leaves that to the server.
        reading_every_s: seconds between two readings of that memory.
        metrics: where operations are counted.
        breakers: metrics of the breakers ``redis`` and ``redis_writes``; ``None`` is none.
    """

    def __init__(
        self,
        client: AnyRedis,
        *,
        lifetimes: Lifetimes,
        write_budget_s: float,
        metrics: CacheMetrics,
        read_budget_s: float = 0.015,
        concurrency: int = 32,
        max_bytes: int | None = None,
        reading_every_s: float = 5.0,
        breakers: BreakerMetrics | None = None,
    ) -> None:
        self._client = client
        self._lifetimes = lifetimes
        self._read_budget_s = read_budget_s
        self._write_budget_s = write_budget_s
        self._metrics = metrics
        self._commands = BoundedCommands(max(1, concurrency - 1))
        fetch = one_message(client)
        self._lookups = None if fetch is None else Lookups(fetch, self._commands)
        self._recent: dict[str, tuple[object, Entry]] = {}
        """Raw and decoded value, by key."""
        self._probes = BoundedCommands(concurrency)
        self._occupancy = Occupancy(max_bytes)
        self._max_bytes = max_bytes
        self._reading_every_s = reading_every_s
        self._breaker = _breaker(client, breakers)
        self._writes = Breaker("redis_writes", breakers, in_a_row=1, wait_s=_REFUSED_S)
        self._outage = OutageLogThrottle()
        self._refusals = OutageLogThrottle()
        self._follower: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None
        metrics.watch_redis(lambda: self._occupancy.used_bytes, lambda: self._occupancy.keys)

    @property
    def up(self) -> bool:
        """Whether the last command was answered."""
        return not self._outage.under_way

    @property
    def shut_off(self) -> bool:
        """Whether look-ups and writes are skipped until Redis is back."""
        return not self._breaker.closed

    async def start(self) -> None:
        """Ping the server (a warning is logged if it does not answer) and follow its memory."""
        await self.ping()
        self._follower = asyncio.create_task(self._follow())

    async def ping(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the server answers; a change is logged."""
        return await self._try("ping", self._client.ping, timeout_s) is not None

    async def get(self, key: str, *, budget_s: float) -> Entry | None:
        """The entry under ``key``; ``None`` too if Redis is slow or down, or it is corrupt."""
        if not self._breaker.allow(trial=False):
            self._metrics.count("redis", "get", "skipped")
            return None
        if self._lookups is None:
            raw = await self._try("get", lambda: self._client.get(key), budget_s)
        else:
            raw = await self._answer("get", self._lookups.get(key, budget_s), budget_s)
        if raw is None:
            return None
        if raw is _NOTHING:
            self._metrics.count("redis", "get", "miss")
            return None
        try:
            entry = self._decoded(raw, key)
        except codec.CorruptValue:
            self._metrics.count("redis", "get", "corrupt")
            return None
        if self._lifetimes.gone(entry):
            self._metrics.count("redis", "get", "miss")
            return None
        self._metrics.count("redis", "get", "stale" if self._lifetimes.stale(entry) else "hit")
        return entry

    def _decoded(self, raw: object, key: str) -> Entry:
        """The entry; the earlier object if Redis still has the same bytes.

        Raises:
            CorruptValue: it is no entry.
        """
        known = self._recent.get(key)
        if known is not None and known[0] == raw:
            return known[1]
        entry = codec.decode(raw, key, self._lifetimes)
        if known is None and len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = raw, entry
        return entry

    async def put(self, key: str, entry: Entry) -> None:
        """Write ``entry`` under ``key``, with its expiry."""
        if not self._breaker.allow(trial=False):
            self._metrics.count("redis", "put", "skipped")
            return
        raw = codec.encode(entry)
        if len(raw) > codec.MAX_BYTES:
            self._metrics.count("redis", "put", "too_large")
            return
        if self._occupancy.full:
            self._metrics.count("redis", "put", "full")
            return
        if not self._writes.allow():
            self._metrics.count("redis", "put", "skipped")
            return
        life_ms = max(1, int((entry.gone_at - self._lifetimes.clock()) * 1000))
        done = None
        try:
            done = await self._try(
                "put", lambda: self._client.set(key, raw, px=life_ms), self._write_budget_s
            )
        finally:
            if done is None:
                self._writes.cancelled()
        if done is not None:
            self._occupancy.wrote(len(raw))
            self._metrics.count("redis", "put", "ok")
            self._writes.succeeded()
            if self._refusals.recovered():
                _log.info("redis_takes_writes", detail="new answers are shared again")

    async def forget(self, keys: Iterable[str]) -> int:
        """Remove the entries under ``keys``; returns how many there were.

        Raises:
            CacheUnavailable: Redis did not answer; some may be left.
        """
        keys = list(keys)
        return sum(
            [
                await self._chore(partial(self._unlink, keys[start : start + _UNLINK_BATCH]))
                for start in range(0, len(keys), _UNLINK_BATCH)
            ]
        )

    async def forget_prefix(self, prefix: str) -> int:
        """Remove all entries whose key starts with ``prefix``; returns how many there were.

        It scans all keys of each master, some at a time.

        Raises:
            CacheUnavailable: Redis did not answer; some may be left.
        """
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
        removed = 0
        for send in await self._chore(lambda: masters(self._client)):
            cursor = -1
            while cursor:
                step = partial(send, "SCAN", max(cursor, 0), "MATCH", pattern, "COUNT", _SCAN_COUNT)
                cursor, keys = await self._chore(step)
                removed += await self.forget(keys)
        return removed

    async def close(self) -> None:
        """Close all connections; idempotent."""
        tasks = [task for task in (self._follower, self._recovery) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._probes.close()
        await self._commands.close()
        if self._lookups is not None:
            await self._lookups.close()
        await disconnect(self._client)

    async def _unlink(self, keys: Sequence[str | bytes]) -> int:
        # One command for each key, in one message to each node: a cluster spreads the keys.
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command("UNLINK", key)
        return sum(await pipeline.execute())

    async def _chore(self, command: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._commands.run(command, _CHORE_BUDGET_S)
        except Exception as error:
            self._count("purge", error)
            self._lost(error)
            raise CacheUnavailable(
                "Redis did not answer, so entries may be left in it; try again once it is back"
            ) from error

    async def _try(self, op: str, command: Callable[[], Awaitable[Any]], budget_s: float) -> Any:
        """The answer to a command; see :meth:`_answer`."""
        return await self._answer(op, self._commands.run(command, budget_s), budget_s)

    async def _answer(self, op: str, answering: Awaitable[Any], budget_s: float) -> Any:
        """The answer, ``_NOTHING`` for nil, ``None`` for a fault, which is counted."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            answer = await answering
        except Exception as error:  # noqa: BLE001 - a fault of any kind counts as a miss
            self._fault(op, error, budget_s, clock() - begun)
            return None
        if op in _WATCHED and clock() - begun <= self._read_budget_s and self._breaker.closed:
            # A write that needs its longer budget says nothing good about look-ups.
            self._breaker.succeeded()
        self._back()
        return _NOTHING if answer is None else answer

    def _fault(self, op: str, error: Exception, budget_s: float, took_s: float) -> None:
        self._count(op, error)
        if _refusal(error):
            if op == "put":
                self._writes.failed()
                self._refused(error)
            return
        self._lost(error)
        if op not in _WATCHED or not self._breaker.closed:
            return
        if _late(error) and (budget_s < self._read_budget_s or took_s > budget_s + _LAG_S):
            return  # The budget was short, or this process is too busy to read the answer.
        self._breaker.failed()
        if not self._breaker.closed and (self._recovery is None or self._recovery.done()):
            # With a context of its own, because it outlives the request that starts it.
            self._recovery = asyncio.create_task(self._recover(), context=Context())

    def _count(self, op: str, error: Exception) -> None:
        result = "timeout" if _late(error) else "error"
        if op == "put" and isinstance(error, OutOfMemoryError):
            result = "oom"
        self._metrics.count("redis", op, result)

    def _lost(self, error: Exception) -> None:
        # With a slow server, or a cluster that lacks a node, every other command fails.
        if self._outage.failed():
            _log.warning(
                "redis_unavailable",
                detail="serving from the memory cache; check the server and REQUERY_REDIS_URL",
                reason=f"{type(error).__name__}: {error}",
                times=self._outage.times,
            )

    def _back(self) -> None:
        # A server that answers a chore may still be too slow for look-ups.
        if self._breaker.closed and self._outage.recovered():
            _log.info("redis_back", detail="the shared cache is in use again")

    def _refused(self, error: Exception) -> None:
        if self._refusals.failed():
            _log.warning(
                "redis_refuses_writes",
                detail="new answers are not shared; if it is full, set its maxmemory-policy to "
                "allkeys-lru",
                reason=f"{type(error).__name__}: {error}",
                times=self._refusals.times,
            )

    async def _recover(self) -> None:
        """Wait until Redis is in use again."""
        # Connections to a server that died silently fail one by one, each after its time limit.
        with suppress(*FAULTS):
            await _drop_idle(self._client)
        while not self._breaker.closed:
            await asyncio.sleep(max(self._breaker.wait_left_s, _SHORTEST_WAIT_S))
            # Opening a connection may take longer than a look-up, and does not count.
            await self._pinged(_CONNECT_S)
            await self._probe()
        self._back()

    async def _probe(self) -> None:
        """Ping until the breaker closes or opens again."""
        while self._breaker.allow():
            fault = await self._pinged(self._read_budget_s)
            if fault is None:
                self._breaker.succeeded()
            else:
                self._count("ping", fault)
                self._lost(fault)
                self._breaker.failed()
            if self._breaker.closed:
                return

    async def _pinged(self, budget_s: float) -> Exception | None:
        """The fault, if most masters do not answer."""
        try:
            sends = await self._probes.run(lambda: masters(self._client), _CONNECT_S)
        except Exception as error:  # noqa: BLE001 - as for a look-up
            return error
        answers = await asyncio.gather(
            *(self._probes.run(partial(send, "PING"), budget_s) for send in sends),
            return_exceptions=True,
        )
        faults = [one for one in answers if isinstance(one, Exception) and not _refusal(one)]
        return faults[0] if 2 * len(faults) > len(sends) else None

    async def _follow(self) -> None:
        """Read how full Redis is, every few seconds."""
        first = True
        while True:
            found = await self._try("info", self._read, _CHORE_BUDGET_S)
            if found is not None:
                self._occupancy.read(found)
                if first:
                    self._advise(found)
                first = False
            await asyncio.sleep(self._reading_every_s)

    async def _read(self) -> Reading:
        return reading(
            [
                (await send("INFO", "memory"), await send("DBSIZE"))
                for send in await masters(self._client)
            ]
        )

    def _advise(self, found: Reading) -> None:
        if found.bounded and not found.evicts:
            _log.warning(
                "redis_evicts_nothing",
                detail="once Redis is full it refuses writes, and new answers are not shared; set "
                "its maxmemory-policy to allkeys-lru, or lower REQUERY_CACHE_TTL_S",
            )
        elif not found.bounded and self._max_bytes is None:
            _log.warning(
                "redis_unbounded",
                detail="nothing bounds the memory of Redis; set its maxmemory and "
                "maxmemory-policy allkeys-lru, or REQUERY_CACHE_REDIS_BYTES",
            )


def _breaker(client: AnyRedis, metrics: BreakerMetrics | None) -> Breaker:
    waits: dict[str, Any] = {
        "good": _GOOD_PINGS, "wait_s": _LONGEST_OPEN_S / 4, "longest_wait_s": _LONGEST_OPEN_S
    }  # fmt: skip
    if isinstance(client, RedisCluster):
        # While one node is away, the others still answer.
        waits |= {"window": 64, "least": 32, "share": 0.8, "in_a_row": 32}
    return Breaker("redis", metrics, **waits)


async def _drop_idle(client: AnyRedis) -> None:
    """Close the connections that no command is using."""
    if isinstance(client, RedisCluster):
        await asyncio.gather(*(node.disconnect_free_connections() for node in client.get_nodes()))
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


def _late(error: Exception) -> bool:
    return isinstance(error, TimeoutError | RedisTimeoutError)


def _refusal(error: Exception) -> bool:
    """Whether Redis answered with an error, and so is alive."""
    return isinstance(error, ResponseError) and not isinstance(error, ClusterDownError)


_NOTHING = object()
