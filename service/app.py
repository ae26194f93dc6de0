"""Composition root: settings -> parts -> FastAPI. Nothing else knows how the parts fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import FastAPI

from model_store.errors import ModelStoreError
from service.api import problems
from service.api.body import DeadlinePolicy
from service.api.middleware import BodyLimitMiddleware, RequestContextMiddleware
from service.api.openapi import document
from service.api.operations import OperationsApi
from service.api.rewriting import RewritingApi
from service.cache.lifetimes import Lifetimes
from service.cache.memory import MemoryCache
from service.cache.redis import RedisCache
from service.cache.tiered import TieredCache
from service.coalesce import Coalescer
from service.errors import RequeryError
from service.logging import query_fields
from service.metrics import Metrics
from service.redis import connect
from service.rewriter import Rewriter
from service.settings import Settings
from service.tagger import Tagger
from service.versions import EngineFactory, Version, Versions

_log = structlog.get_logger(component="app")


@dataclass(frozen=True, slots=True)
class Parts:
    """What has a life of its own: started and stopped with the application."""

    versions: Versions
    metrics: Metrics
    flights: Coalescer
    cache: TieredCache
    redis: RedisCache | None


def create_app(
    settings: Settings,
    *,
    versions: Sequence[Version],
    engines: EngineFactory,
    gpu: bool = False,
    on_load_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Put a service together.

    The default version is loaded in the background once the application starts: until then
    ``/livez`` answers 200, ``/readyz`` 503 and ``/rewrite`` what the cache has, else
    ``status: fallback``.

    Args:
        settings: all options.
        versions: every known version.
        engines: makes the engine of a version.
        gpu: whether engines run on a GPU; decides on the default deadline.
        on_load_failure: told when the default version could not be loaded.

    Raises:
        UnknownVersion: the default version is not among ``versions``.
        ValueError: the Redis URL is none.
    """
    metrics = Metrics(release=release())
    registry = Versions(versions, default=settings.default_version)
    lifetimes = Lifetimes(
        hard_s=settings.cache_ttl_s,
        soft_s=settings.cache_soft_ttl_s,
        empty_s=settings.cache_empty_ttl_s,
        jitter=settings.cache_ttl_jitter,
    )
    memory = MemoryCache(
        max_bytes=settings.cache_memory_bytes, lifetimes=lifetimes, metrics=metrics.cache
    )
    redis = _redis(settings, lifetimes, metrics)
    cache = TieredCache(
        memory, redis, lifetimes=lifetimes, read_budget_s=settings.redis_read_budget_ms / 1000
    )
    flights = Coalescer(bound_s=settings.generation_timeout_s)
    parts = Parts(registry, metrics, flights, cache, redis)
    rewriting = RewritingApi(
        rewriter=Rewriter(versions=registry, cache=cache, flights=flights, metrics=metrics),
        tagger=Tagger(registry),
        rewrite_deadline=DeadlinePolicy(settings.deadline_ms(gpu=gpu), settings.max_deadline_ms),
        tag_deadline=DeadlinePolicy(settings.max_deadline_ms, settings.max_deadline_ms),
        query_fields=query_fields(
            settings.log_queries, salt=settings.log_query_salt.get_secret_value()
        ),
    )
    for known in registry:
        metrics.watch_engine(known.name, _is_up(known))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with _running(parts, engines, on_load_failure):
            yield

    app = FastAPI(
        title="Requery",
        version=release(),
        description="Rewrites shopping queries, each tagged with its relevance.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.include_router(rewriting.router())
    app.include_router(OperationsApi(versions=registry, metrics=metrics).router())
    problems.install(app)
    # The one added last is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        RequestContextMiddleware, metrics=metrics, log_requests=settings.log_requests
    )
    app.openapi = document(app)  # type: ignore[method-assign] # FastAPI's documented way
    return app


def release() -> str:
    """Version of this program."""
    try:
        return version("requery")
    except PackageNotFoundError:  # run out of a source tree that is not installed
        return "0+unknown"


@asynccontextmanager
async def _running(
    parts: Parts, engines: EngineFactory, on_load_failure: Callable[[Exception], None] | None
) -> AsyncIterator[None]:
    if parts.redis is not None:
        # Warns when there is no answer; the service does without until there is.
        await parts.redis.ping()
    loading = asyncio.create_task(_load(parts, engines, on_load_failure))
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await parts.flights.close()
        await parts.versions.close()
        await parts.cache.close()


async def _load(
    parts: Parts, engines: EngineFactory, on_load_failure: Callable[[Exception], None] | None
) -> None:
    default = parts.versions.default
    try:
        await default.load(engines, parts.metrics.count_tokens(default.name))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told and ends the process
        expected = isinstance(error, RequeryError | ModelStoreError)
        _log.error("version_failed", version=default.name, reason=str(error), exc_info=not expected)
        if on_load_failure is not None:
            on_load_failure(error)


def _redis(settings: Settings, lifetimes: Lifetimes, metrics: Metrics) -> RedisCache | None:
    if settings.redis_url is None:
        return None
    client = connect(
        settings.redis_url.get_secret_value(),
        max_connections=settings.redis_max_connections,
        # Only how long a command goes on that nobody waits for any longer.
        timeout_s=max(1.0, settings.redis_write_budget_ms / 1000),
    )
    return RedisCache(
        client,
        lifetimes=lifetimes,
        write_budget_s=settings.redis_write_budget_ms / 1000,
        concurrency=settings.redis_max_connections,
        max_bytes=settings.cache_redis_bytes,
        metrics=metrics.cache,
    )


def _is_up(known: Version) -> Callable[[], bool]:
    return lambda: known.up
