"""A shared tier on a real Redis, with budgets that a busy machine keeps."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from service.cache.lifetimes import Entry, Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.redis_tier import RedisTier
from service.filtering.candidates import Scored
from service.filtering.generation import Generation
from service.redis.client import connect

LIFETIMES = Lifetimes(hard_s=600)
VALUE = Generation((Scored("steel stake", 0.1 + 0.2), Scored("cut", None)))


def entry(value: Generation = VALUE) -> Entry:
    """An entry made now."""
    return LIFETIMES.entry("k", value)


def open_cache(
    url: str, registry: CollectorRegistry | None = None, *, concurrency: int = 8, **options: Any
) -> RedisTier:
    """A tier on ``url``; the test closes it."""
    defaults: dict[str, Any] = {
        "write_budget_s": 10.0, "read_budget_s": 10.0, "lifetimes": LIFETIMES,
    }  # fmt: skip
    return RedisTier(
        connect(url, max_connections=concurrency, timeout_s=5.0),
        metrics=CacheMetrics(registry or CollectorRegistry()),
        concurrency=concurrency,
        **(defaults | options),
    )
