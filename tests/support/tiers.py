"""Replicas of the cache on a client that does as it is told, by the second."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from prometheus_client import CollectorRegistry

from service.cache.lifetimes import Lifetimes
from service.cache.memory_tier import MemoryTier
from service.cache.metrics import CacheMetrics
from service.cache.redis_tier import RedisTier
from service.cache.tiered import TieredCache
from service.filtering.candidates import Scored
from service.filtering.generation import Generation
from service.redis.client import AnyRedis
from service.resilience.metrics import STATES, BreakerMetrics


def generation(*texts: str) -> Generation:
    return Generation(tuple(Scored(text, 0.9) for text in texts))


class FakePipeline:
    def __init__(self, store: dict[str, bytes]) -> None:
        self._store = store
        self._keys: list[str] = []

    def execute_command(self, name: str, key: str | bytes) -> None:
        assert name == "UNLINK"
        self._keys.append(key.decode() if isinstance(key, bytes) else key)

    async def execute(self) -> list[int]:
        return [int(self._store.pop(key, None) is not None) for key in self._keys]


class FakeRedis:
    """As much of a client as the cache needs, on a dictionary."""

    def __init__(self) -> None:
        self.store: dict[str, bytes] = {}
        self.fault: Exception | None = None
        """Raised by every command."""
        self.faults: dict[str, Exception] = {}
        """Raised by the commands of that name."""
        self.gates: dict[str, asyncio.Event] = {}
        """What the commands of that name wait for."""
        self.before: Callable[[], Awaitable[None]] | None = None
        self.asked: Counter[str] = Counter()
        self.sets: list[int] = []
        self.together: list[list[str]] = []
        """Keys of each ``MGET``."""
        self.used = 1000
        self.connection_pool = self
        self.dropped = 0

    async def _begin(self, name: str) -> None:
        self.asked[name] += 1
        if self.before is not None:
            await self.before()
        if name in self.gates:
            await self.gates[name].wait()
        fault = self.faults.get(name, self.fault)
        if fault is not None:
            raise fault

    async def ping(self) -> bool:
        await self._begin("PING")
        return True

    async def get(self, key: str) -> bytes | None:
        found = self.store.get(key)
        await self._begin("GET")
        return found

    async def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        found = [self.store.get(key) for key in keys]
        self.together.append(list(keys))
        await self._begin("MGET")
        return found

    async def set(self, key: str, raw: bytes, *, px: int) -> bool:
        await self._begin("SET")
        self.sets.append(px)
        self.store[key] = raw
        return True

    def pipeline(self, *, transaction: bool) -> FakePipeline:
        assert not transaction
        return FakePipeline(self.store)

    async def execute_command(self, name: str, *_arguments: Any) -> Any:
        await self._begin(name)
        if name == "INFO":
            return {"used_memory": self.used, "maxmemory": 0, "maxmemory_policy": "noeviction"}
        return True if name == "PING" else len(self.store)

    async def disconnect(self, *, inuse_connections: bool = True) -> None:
        self.dropped += not inuse_connections

    async def aclose(self) -> None:
        """Nothing to close."""


class Tiers:
    """Replicas of the cache on one fake Redis, by the second."""

    def __init__(self, **lifetimes: float) -> None:
        self.now = 1000.0
        self.lifetimes = Lifetimes(
            **({"hard_s": 100.0, "soft_s": 40.0} | lifetimes), clock=lambda: self.now
        )
        self.redis = FakeRedis()
        self.registry = CollectorRegistry()
        self.metrics = CacheMetrics(self.registry)
        self.breakers = BreakerMetrics(self.registry)
        self.shared = self.tier(self.metrics, breakers=self.breakers)
        self.cache = self.replica(self.shared, self.metrics)

    def tier(self, metrics: CacheMetrics, **options: Any) -> RedisTier:
        client = cast("AnyRedis", self.redis)
        defaults: dict[str, Any] = {"write_budget_s": 60.0, "lifetimes": self.lifetimes}
        return RedisTier(client, metrics=metrics, **(defaults | options))

    def replica(
        self, shared: RedisTier | None = None, metrics: CacheMetrics | None = None
    ) -> TieredCache:
        metrics = metrics or CacheMetrics(CollectorRegistry())
        memory = MemoryTier(max_bytes=1 << 20, lifetimes=self.lifetimes, metrics=metrics)
        return TieredCache(
            memory, shared or self.tier(metrics), lifetimes=self.lifetimes, read_budget_s=60
        )

    def state(self, name: str = "redis") -> str:
        """The state that the metrics show of a breaker."""
        (shown,) = (
            state
            for state in STATES
            if self.registry.get_sample_value(
                "requery_breaker_state", {"name": name, "state": state}
            )
        )
        return shown

    def count(self, tier: str, op: str, result: str) -> float | None:
        labels = {"tier": tier, "op": op, "result": result}
        return self.registry.get_sample_value("requery_cache_operations_total", labels)


async def seen(cache: TieredCache, key: str) -> tuple[str, str, bool] | None:
    hit = await cache.get(key, budget_s=60)
    return hit and (hit.tier, hit.generation.candidates[0].text, hit.stale)
