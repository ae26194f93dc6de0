"""The tier that replicas share: Redis, with budgets of milliseconds and no retries."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.cache import codec
from service.cache.lifetimes import Entry, Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.occupancy import Occupancy, Reading, reading
from service.cache.patience import Patience
from service.errors import CacheUnavailable
from service.redis import AnyRedis, disconnect, masters

T = TypeVar("T")

_CHORE_BUDGET_S = 5.0
"""Longest wait for one step of what no shopper waits for: purges and readings."""
_SCAN_COUNT = 1000
"""Keys that the server looks at in one step of a purge, so that it never blocks for long."""
_UNLINK_BATCH = 500
_WARN_EVERY_S = 60.0

_log = structlog.get_logger(component="cache")


class RedisCache:
    """Entries in Redis. No look-up or write raises, or takes longer than its budget.

    Each command gets one try, and its budget covers waiting for a connection, connecting and the
    answer. Loss and return of Redis are logged, once a minute at most.

    Args:
        client: of this cache alone; closed with it. Its own time limit (a second, say) bounds how
            long a command that is no longer waited for may go on.
        lifetimes: rules of age.
        write_budget_s: bound on one write. Writes happen after the answer.
        concurrency: most commands under way at a time; no more than the client has connections.
        max_bytes: writes stop while Redis uses more memory than this, for whatever it holds and
            over all masters; ``None`` leaves that to the server.
        reading_every_s: seconds between two readings of that memory.
        metrics: where operations are counted.
    """

    def __init__(
        self,
        client: AnyRedis,
        *,
        lifetimes: Lifetimes,
        write_budget_s: float,
        metrics: CacheMetrics,
        concurrency: int = 32,
        max_bytes: int | None = None,
        reading_every_s: float = 5.0,
    ) -> None:
        self._client = client
        self._lifetimes = lifetimes
        self._write_budget_s = write_budget_s
        self._metrics = metrics
        self._patience = Patience(concurrency)
        self._occupancy = Occupancy(max_bytes)
        self._max_bytes = max_bytes
        self._reading_every_s = reading_every_s
        self._up = True
        self._warned = False
        self._warned_at: float | None = None
        self._follower: asyncio.Task[None] | None = None
        metrics.watch_redis(lambda: self._occupancy.used_bytes, lambda: self._occupancy.keys)

    @property
    def up(self) -> bool:
        """Whether the last command was answered."""
        return self._up

    async def start(self) -> None:
        """Greet the server (a warning in the log if it does not answer) and follow its memory."""
        await self.ping()
        self._follower = asyncio.create_task(self._follow())

    async def ping(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the server answers; says so in the log when that changes."""
        return await self._try("ping", self._client.ping, timeout_s) is not None

    async def get(self, key: str, *, budget_s: float) -> Entry | None:
        """The entry under ``key``; ``None`` as well if Redis is slow, down or has nonsense."""
        raw = await self._try("get", lambda: self._client.get(key), budget_s)
        if raw is None:
            return None
        if raw is _NOTHING:
            self._metrics.count("redis", "get", "miss")
            return None
        try:
            entry = codec.decode(raw, key, self._lifetimes)
        except codec.CorruptValue:
            self._metrics.count("redis", "get", "corrupt")
            return None
        if self._lifetimes.gone(entry):
            self._metrics.count("redis", "get", "miss")
            return None
        self._metrics.count("redis", "get", "stale" if self._lifetimes.stale(entry) else "hit")
        return entry

    async def put(self, key: str, entry: Entry) -> None:
        """Write ``entry`` under ``key``, until it is gone."""
        raw = codec.encode(entry)
        if len(raw) > codec.MAX_BYTES:
            self._metrics.count("redis", "put", "too_large")
            return
        if self._occupancy.full:
            self._metrics.count("redis", "put", "full")
            return
        life_ms = max(1, int((entry.gone_at - self._lifetimes.clock()) * 1000))
        done = await self._try(
            "put", lambda: self._client.set(key, raw, px=life_ms), self._write_budget_s
        )
        if done is not None:
            self._occupancy.wrote(len(raw))
            self._metrics.count("redis", "put", "ok")

    async def forget(self, keys: Iterable[str]) -> int:
        """Remove the entries under ``keys``; says how many there were.

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
        """Remove all entries whose key starts with ``prefix``; says how many there were.

        It goes through all keys of each master, some at a time, and takes as long as that takes.

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
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._patience.close()
        await disconnect(self._client)

    async def _unlink(self, keys: Sequence[str | bytes]) -> int:
        # One by one, in one message to each node: in a cluster each key has a place of its own.
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.execute_command("UNLINK", key)
        return sum(await pipeline.execute())

    async def _chore(self, command: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._patience.run(command, _CHORE_BUDGET_S)
        except Exception as error:
            self._count_fault("purge", error)
            raise CacheUnavailable(
                "Redis did not answer, so entries may be left in it; try again once it is back"
            ) from error

    async def _try(self, op: str, command: Callable[[], Awaitable[Any]], budget_s: float) -> Any:
        """The command's answer, ``_NOTHING`` for nil, ``None`` (after counting) for a fault."""
        try:
            answer = await self._patience.run(command, budget_s)
        except Exception as error:  # noqa: BLE001 - whatever the client runs into, we can do without
            self._count_fault(op, error)
            return None
        self._tell(up=True)
        return _NOTHING if answer is None else answer

    def _count_fault(self, op: str, error: Exception) -> None:
        late = isinstance(error, TimeoutError | RedisTimeoutError)
        self._metrics.count("redis", op, "timeout" if late else "error")
        self._tell(up=False, why=f"{type(error).__name__}: {error}")

    def _tell(self, *, up: bool, why: str = "") -> None:
        if up == self._up:
            return
        self._up = up
        now = asyncio.get_running_loop().time()
        # A slow server, or a cluster that lacks a node, comes and goes with every other command.
        if not up and (self._warned_at is None or now - self._warned_at >= _WARN_EVERY_S):
            self._warned_at = now
            self._warned = True
            _log.warning(
                "redis_unavailable",
                detail="serving from the memory cache; check the server and REQUERY_REDIS_URL",
                reason=why,
            )
        elif up and self._warned:
            self._warned = False
            _log.info("redis_back", detail="the shared cache is in use again")

    async def _follow(self) -> None:
        """Read how full Redis is, every few seconds. It also finds out when Redis is back."""
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


_NOTHING = object()
