"""Metrics of the cache: operations by tier, hit ratios, and the size of both tiers."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from service.telemetry.fast_metrics import FastCounters

_FAULTS = ("error", "timeout")
OPERATIONS = {
    ("memory", "get"): ("hit", "stale", "miss"),
    ("memory", "put"): ("ok", "too_large"),
    ("memory", "evict"): ("ok",),
    ("redis", "get"): ("hit", "stale", "miss", "corrupt", "skipped", *_FAULTS),
    ("redis", "put"): ("ok", "too_large", "full", "oom", "skipped", *_FAULTS),
    ("redis", "ping"): _FAULTS,
    ("redis", "info"): _FAULTS,
    ("redis", "purge"): _FAULTS,
}
"""Results by tier and operation: ``full`` is a write above our own bound on bytes, ``oom`` one that
Redis refused because it is full, and ``skipped`` one not tried because a breaker was open."""

_SPAN = 1000
"""Look-ups that a hit ratio covers."""


class CacheMetrics:
    """Operations of both tiers, their hit ratios and sizes.

    Args:
        registry: where the collectors are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        operations = FastCounters(
            "requery_cache_operations",
            "Cache operations by tier, operation and result",
            ["tier", "op", "result"],
            registry=registry,
        )
        self._operations = {
            (tier, op, result): operations.labels(tier, op, result)
            for (tier, op), results in OPERATIONS.items()
            for result in results
        }
        ratio = Gauge(
            "requery_cache_hit_ratio",
            f"Share of hits in about the last {_SPAN} look-ups of a tier (NaN: none yet); "
            "exact figures over any time come from requery_cache_operations_total",
            ["tier"],
            registry=registry,
        )
        self._ratios = {tier: _Ratio(ratio.labels(tier)) for tier in ("memory", "redis")}
        self._bytes = Gauge(
            "requery_cache_memory_bytes", "Estimated size of the memory tier", registry=registry
        )
        self._entries = Gauge(
            "requery_cache_memory_entries", "Entries of the memory tier", registry=registry
        )
        self._redis_bytes = Gauge(
            "requery_cache_redis_bytes",
            "Memory that Redis uses for everything in it, over all masters, as last read, plus "
            "what this process has written since (NaN: not known, or no Redis)",
            registry=registry,
        )
        self._redis_keys = Gauge(
            "requery_cache_redis_keys",
            "All keys in Redis, over all masters, as last read (NaN: not known)",
            registry=registry,
        )
        self._redis_bytes.set(math.nan)
        self._redis_keys.set(math.nan)

    def count(self, tier: str, op: str, result: str) -> None:
        """Count one operation; the combinations are those of :data:`OPERATIONS`."""
        self._operations[tier, op, result].inc()
        if op == "get" and result != "skipped":
            self._ratios[tier].add(hit=result in ("hit", "stale"))

    def watch_memory(self, size: Callable[[], int], entries: Callable[[], int]) -> None:
        """Read the memory tier's size (bytes) and entries at every scrape."""
        self._bytes.set_function(size)
        self._entries.set_function(entries)

    def watch_redis(self, size: Callable[[], float], keys: Callable[[], float]) -> None:
        """Read the known memory (bytes) and keys of Redis at every scrape."""
        self._redis_bytes.set_function(size)
        self._redis_keys.set_function(keys)


class _Ratio:
    """A moving average: of all look-ups at first, then of about the last thousand."""

    def __init__(self, gauge: Gauge) -> None:
        self._seen = 0
        self._mean = 0.0
        gauge.set_function(lambda: self._mean if self._seen else math.nan)

    def add(self, *, hit: bool) -> None:
        self._seen = min(self._seen + 1, _SPAN)
        self._mean += (hit - self._mean) / self._seen
