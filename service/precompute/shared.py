"""The tier of the cache that replicas share, as those who fill it ahead of time use it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from service.cache.lifetimes import Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.redis_tier import RedisTier
from service.config.settings import Settings
from service.precompute.errors import PrecomputeError
from service.precompute.fillers import REDIS_BUDGET_S
from service.redis.client import connect


def redis_of(settings: Settings, lifetimes: Lifetimes, connections: int) -> RedisTier:
    """The tier that replicas share, with patience: nobody waits for these answers.

    Raises:
        PrecomputeError: the URL is none.
    """
    assert settings.redis_url is not None  # noqa: S101 - for the type checker
    try:
        client = connect(
            settings.redis_url.get_secret_value(),
            max_connections=connections + 1,
            timeout_s=REDIS_BUDGET_S,
        )
    except ValueError as error:
        raise PrecomputeError(f"REQUERY_REDIS_URL: {error}") from None
    return RedisTier(
        client,
        lifetimes=lifetimes,
        read_budget_s=REDIS_BUDGET_S,
        write_budget_s=REDIS_BUDGET_S,
        concurrency=connections,
        max_bytes=settings.cache_redis_bytes,
        metrics=CacheMetrics(CollectorRegistry()),
    )
