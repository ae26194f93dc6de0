"""Prepares a run from the options: version, plan, journal, and filler."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from model_store.store import Store, open_store
from model_store.text import MAX_QUERY_CHARS, normalise
from service.cache.keys import SCHEMA
from service.cache.lifetimes import Lifetimes
from service.cache.redis_tier import RedisTier
from service.config import calling
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.errors import InvalidQuery
from service.pipeline.batch import MAX_BATCH
from service.precompute.errors import PrecomputeError
from service.precompute.fillers import (
    EngineFiller,
    ServiceFiller,
    redis_tier,
    served_version,
)
from service.precompute.journal import About, Journal, Result
from service.precompute.plan import Plan
from service.precompute.run import BaseRun, Pace, Run
from service.versions.from_store import engine_factory, version_finder
from service.versions.version import ModelVersion

_SEQUENCES = 256
"""Candidates in progress at a time: the largest default of an engine, so that it never idles."""
_CALL_TIMEOUT = httpx.Timeout(660.0, connect=10.0)
"""Longer than any service takes for a batch."""

DEFAULT_RATE = 5.0
"""Queries a second to ask a service for: a third of what two CPU cores do."""

Unless = Callable[[Awaitable[Any]], Awaitable[Any]]
"""Awaits something, unless a signal to stop comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a run.

    Attributes:
        journal: file of the journal.
        version_name: ``None`` for the default.
        top: limit on the queries.
        coverage: limit on the share of all searches.
        batch: limit on the queries that a kill can lose.
        concurrency: queries in progress at a time; ``None`` for enough to fill the engine.
        url: of the service to ask; ``None`` for an engine of our own.
        key_file: of the API key for it; ``None``: ``REQUERY_API_KEY``, if set.
        rate: queries a second to ask a service for.
        fold_case: whether the version of the service folds case.
        ray: whether to use engines of the Ray cluster.
        workers: limit on those engines; ``None`` for as many as fit.
    """

    journal: Path
    version_name: str | None = None
    top: int | None = None
    coverage: float = 1.0
    batch: int = 256
    concurrency: int | None = None
    url: str | None = None
    key_file: Path | None = None
    rate: float = DEFAULT_RATE
    fold_case: bool = True
    ray: bool = False
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that can start."""

    run: BaseRun
    plan: Plan
    head: int
    about: About


@dataclass(frozen=True, slots=True)
class _RedisRun:
    """The parts of a run that writes to Redis."""

    store: Store
    version: ModelVersion
    plan: Plan
    head: int
    about: About
    journal: Journal
    redis: RedisTier
    concurrency: int
    lifetimes: Lifetimes


@asynccontextmanager
async def with_engine(
    counts: Mapping[str, float], options: Options, settings: Settings, unless: Unless
) -> AsyncIterator[Prepared]:
    """A run on an engine of its own, which writes to Redis; see :func:`with_service`.

    Raises:
        PrecomputeError: there is no Redis, or the journal cannot be used.
        ModelStoreError, RequeryError: the version or its engine cannot be used.
    """
    async with _redis_run(counts, options, settings) as base, AsyncExitStack() as stack:
        engine: Engine = await unless(
            engine_factory(base.store, settings)(
                base.version.manifest, lambda _prompt, _generated: None
            )
        )
        stack.push_async_callback(engine.close)
        await unless(engine.start())
        filler = EngineFiller(
            base.version,
            engine,
            base.redis,
            lifetimes=base.lifetimes,
            bound_s=settings.generation_timeout_s,
            concurrency=base.concurrency,
        )
        run = Run(base.plan, base.head, filler=filler, journal=base.journal, batch=options.batch)
        prepared = Prepared(run, base.plan, base.head, base.about)
        yield prepared
        base.journal.close(finished=_finished(prepared))


@asynccontextmanager
async def with_ray(
    counts: Mapping[str, float], options: Options, settings: Settings, unless: Unless
) -> AsyncIterator[Prepared]:
    """A run on engines of a Ray cluster, which write to Redis; see :func:`with_service`.

    It shares the journal format of :func:`with_engine`: each continues what the other has begun.

    Raises:
        PrecomputeError: there is no Redis or no Ray, or the journal cannot be used.
        ModelStoreError, RequeryError: the version cannot be used.
    """
    try:
        from service.precompute.ray_run import RayRun, WorkerPool
    except ModuleNotFoundError as error:
        raise PrecomputeError(
            f"--ray needs the extra 'ray' ({error.name} is missing): "
            "pip install 'requery-search[ray]'"
        ) from None

    async with _redis_run(counts, options, settings) as base:
        pool = WorkerPool(
            settings=settings,
            version=base.version.name,
            digest=base.version.digest,
            engines=engine_factory,
            concurrency=base.concurrency,
        )
        await unless(pool.connect())
        run = RayRun(
            base.plan,
            base.head,
            pool=pool,
            journal=base.journal,
            batch=options.batch,
            workers=options.workers,
        )
        prepared = Prepared(run, base.plan, base.head, base.about)
        yield prepared
        base.journal.close(finished=_finished(prepared))


@asynccontextmanager
async def with_service(
    counts: Mapping[str, float], options: Options, settings: Settings, unless: Unless
) -> AsyncIterator[Prepared]:
    """A run that asks a service at a steady rate.

    Args:
        counts: searches of each query as it was typed.
        options: of the run; ``url`` is set.
        settings: give the lifetimes of cache entries.
        unless: guards the slow steps before the run.

    Raises:
        PrecomputeError: the service does not answer, or the journal cannot be used.
    """
    assert options.url is not None  # noqa: S101 - for the type checker
    plan, head = _plan(counts, lambda raw: _plain(raw, fold_case=options.fold_case), options)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(options.url, options.key_file))
        name, digest = await unless(served_version(client, options.version_name))
        about = About(name, digest, SCHEMA, plan.digest, str(client.base_url))
        journal = Journal(options.journal, about, not_before=_useful_since(settings))
        stack.callback(journal.close)
        # About one call a second, so that the load is even.
        size = max(1, min(MAX_BATCH, options.batch, math.ceil(options.rate)))
        filler = ServiceFiller(client, name, size=size)
        pace = Pace(options.rate)
        run = Run(plan, head, filler=filler, journal=journal, batch=options.batch, pace=pace)
        prepared = Prepared(run, plan, head, about)
        yield prepared
        journal.close(finished=_finished(prepared))


@asynccontextmanager
async def _redis_run(
    counts: Mapping[str, float], options: Options, settings: Settings
) -> AsyncIterator[_RedisRun]:
    if settings.redis_url is None:
        raise PrecomputeError(
            "set REQUERY_REDIS_URL to the Redis of the service, which is where the answers go; or "
            "ask a running service with --url"
        )
    store = open_store(settings.sources(), settings.cache_dir)
    version = await version_finder(store, settings)(
        options.version_name or settings.default_version
    )
    plan, head = _plan(counts, lambda raw: _normal(version, raw), options)
    about = About(version.name, version.digest, SCHEMA, plan.digest, "engine")
    lifetimes = Lifetimes.of(settings)
    concurrency = options.concurrency or max(
        1, math.ceil(_SEQUENCES / len(version.manifest.decoding.temperatures))
    )
    concurrency = min(concurrency, options.batch)
    async with AsyncExitStack() as stack:
        journal = Journal(options.journal, about, not_before=_useful_since(settings))
        stack.callback(journal.close)
        redis = redis_tier(settings, lifetimes, concurrency)
        stack.push_async_callback(redis.close)
        await redis.start()
        if not redis.up:
            raise PrecomputeError(
                "Redis does not answer at REQUERY_REDIS_URL; start it, or correct the address"
            )
        yield _RedisRun(store, version, plan, head, about, journal, redis, concurrency, lifetimes)


def _plan(
    counts: Mapping[str, float], normal_form: Callable[[str], str | None], options: Options
) -> tuple[Plan, int]:
    """The plan, and the number of its queries to process."""
    plan = Plan.of(counts, normal_form)
    head = plan.head(top=options.top, coverage=options.coverage)
    if not head:
        raise PrecomputeError("none of the queries can be rewritten; check the column")
    return plan, head


def _finished(prepared: Prepared) -> bool:
    tally = prepared.run.tally
    return not tally.stopped and not tally.count(Result.FAILED)


def _useful_since(settings: Settings) -> float:
    """Answers made before this time are stale or gone, so their queries are processed again."""
    life = min(settings.cache_ttl_s, settings.cache_soft_ttl_s, settings.cache_empty_ttl_s)
    return time.time() - life * (1 - settings.cache_ttl_jitter)


def _client(url: str, key_file: Path | None) -> httpx.AsyncClient:
    try:
        return calling.client(url, calling.read_key(key_file), _CALL_TIMEOUT)
    except calling.CallInvalid as error:
        raise PrecomputeError(str(error)) from None


def _normal(version: ModelVersion, raw: str) -> str | None:
    try:
        return version.normal_form(raw)
    except InvalidQuery:
        return None


def _plain(raw: str, *, fold_case: bool) -> str | None:
    text = normalise(raw, fold_case=fold_case)
    return text if 0 < len(text) <= MAX_QUERY_CHARS else None
