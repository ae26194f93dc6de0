"""The tier that replicas share: Redis, with budgets of milliseconds and no retries."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.cache import codec
from service.candidates import Generation
from service.metrics import CacheMetrics

_log = structlog.get_logger(component="cache")


class RedisCache:
    """Generations in Redis. No call raises or takes longer than its budget; faults are counted.

    redis-py's defaults (10 retries, 5 s timeouts) are far too patient here: each command gets one
    try, and the budget covers waiting for a connection, connecting and the answer. Loss and return
    of the server are logged once each.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; query options are redis-py's.
        ttl_s: seconds that an entry lives.
        write_budget_s: bound on one write. Writes happen after the answer.
        max_connections: bound on open connections.
        metrics: where operations are counted.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float,
        write_budget_s: float,
        max_connections: int,
        metrics: CacheMetrics,
    ) -> None:
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._write_budget_s = write_budget_s
        self._metrics = metrics
        self._up = True
        # The socket's own limits only back up the budgets, for calls outside of them.
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=1.0,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
            protocol=2,
        )
        self._client: Redis = Redis.from_pool(pool)

    async def ping(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the server answers; says so in the log when that changes."""
        return await self._call("ping", self._client.ping(), timeout_s) is not None

    async def get(self, key: str, *, budget_s: float) -> Generation | None:
        """The generation under ``key``; ``None`` as well if Redis is slow, down or has nonsense."""
        raw = await self._call("get", self._client.get(key), budget_s)
        if raw is None:
            return None
        if raw is _NOTHING:
            self._metrics.count("redis", "get", "miss")
            return None
        try:
            generation = codec.decode(raw)
        except codec.CorruptValue:
            self._metrics.count("redis", "get", "corrupt")
            return None
        self._metrics.count("redis", "get", "hit")
        return generation

    async def put(self, key: str, generation: Generation) -> None:
        """Write ``generation`` under ``key``."""
        raw = codec.encode(generation)
        if len(raw) > codec.MAX_BYTES:
            self._metrics.count("redis", "put", "too_large")
            return
        done = await self._call(
            "put", self._client.set(key, raw, px=self._ttl_ms), self._write_budget_s
        )
        if done is not None:
            self._metrics.count("redis", "put", "ok")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _call(self, op: str, command: Any, budget_s: float) -> Any:
        """The command's answer, ``_NOTHING`` for nil, ``None`` (after counting) for a fault."""
        try:
            async with asyncio.timeout(budget_s):
                answer = await command
        except TimeoutError:
            self._metrics.count("redis", op, "timeout")
            self._tell(up=False, why="no answer in time")
            return None
        except (RedisError, OSError) as error:
            self._metrics.count("redis", op, "error")
            self._tell(up=False, why=f"{type(error).__name__}: {error}")
            return None
        self._tell(up=True)
        return _NOTHING if answer is None else answer

    def _tell(self, *, up: bool, why: str = "") -> None:
        if up == self._up:
            return
        self._up = up
        if up:
            _log.info("redis_back", detail="the shared cache is in use again")
        else:
            _log.warning(
                "redis_unavailable",
                detail="serving from the memory cache; check the server and REQUERY_REDIS_URL",
                reason=why,
            )


_NOTHING = object()
