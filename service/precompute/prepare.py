"""From options to a run that can start: version, plan, journal, and what fills the cache."""

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
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.errors import InvalidQuery
from service.pipeline.batch import MAX_BATCH
from service.precompute.errors import PrecomputeError
from service.precompute.fillers import (
    EngineFiller,
    ServiceFiller,
    served_version,
)
from service.precompute.journal import About, Journal, Result
from service.precompute.plan import Plan
from service.precompute.run import BaseRun, Pace, Run
from service.precompute.shared import redis_of
from service.versions.from_store import engine_factory, version_finder
from service.versions.version import ModelVersion

_SEQUENCES = 256
"""Candidates under way at a time: as many as the largest default of an engine, so that it never
waits for us."""
_CALL_TIMEOUT = httpx.Timeout(660.0, connect=10.0)
"""Longer than any service takes over a batch."""

DEFAULT_RATE = 5.0
"""Queries a second to ask a service for: a third of what two CPU cores do."""

Unless = Callable[[Awaitable[Any]], Awaitable[Any]]
"""Awaits something, unless the program is told to stop first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to do.

    Attributes:
        journal: where to note what is done.
        version_name: ``None`` for the default.
        top: queries, at most.
        coverage: share of all searches, at most.
        batch: queries that a kill can lose, at most.
        concurrency: queries under way at a time; ``None`` for enough.
        url: of the service to ask; ``None`` for an engine of our own.
        rate: queries a second to ask a service for.
        fold_case: whether case is folded, as far as only the service would know.
        ray: whether engines of the Ray cluster do the work.
        workers: engines of the cluster, at most; ``None`` for as many as there is room for.
    """

    journal: Path
    version_name: str | None = None
    top: int | None = None
    coverage: float = 1.0
    batch: int = 256
    concurrency: int | None = None
    url: str | None = None
    rate: float = DEFAULT_RATE
    fold_case: bool = True
    ray: bool = False
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run, and what it is about."""

    run: BaseRun
    plan: Plan
    head: int
    about: About


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a run that writes to Redis stands on."""

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
        PrecomputeError: there is no Redis, or the journal is of no use.
        ModelStoreError, RequeryError: the version or its engine cannot be used.
    """
    async with _ground(counts, options, settings) as ground, AsyncExitStack() as stack:
        engine: Engine = await unless(
            engine_factory(ground.store, settings)(
                ground.version.manifest, lambda _prompt, _generated: None
            )
        )
        stack.push_async_callback(engine.close)
        await unless(engine.start())
        filler = EngineFiller(
            ground.version,
            engine,
            ground.redis,
            lifetimes=ground.lifetimes,
            bound_s=settings.generation_timeout_s,
            concurrency=ground.concurrency,
        )
        run = Run(
            ground.plan, ground.head, filler=filler, journal=ground.journal, batch=options.batch
        )
        prepared = Prepared(run, ground.plan, ground.head, ground.about)
        yield prepared
        ground.journal.close(finished=_finished(prepared))


@asynccontextmanager
async def with_ray(
    counts: Mapping[str, float], options: Options, settings: Settings, unless: Unless
) -> AsyncIterator[Prepared]:
    """A run on engines of a Ray cluster, which write to Redis; see :func:`with_service`.

    Its journal is that of :func:`with_engine`: each goes on with what the other has begun.

    Raises:
        PrecomputeError: there is no Redis or no Ray, or the journal is of no use.
        ModelStoreError, RequeryError: the version cannot be used.
    """
    try:
        from service.precompute.ray_run import RayRun, Team
    except ModuleNotFoundError as error:
        raise PrecomputeError(
            f"--ray needs the extra 'ray' ({error.name} is missing): "
            "pip install 'requery-search[ray]'"
        ) from None

    async with _ground(counts, options, settings) as ground:
        team = Team(
            settings=settings,
            version=ground.version.name,
            digest=ground.version.digest,
            engines=engine_factory,
            concurrency=ground.concurrency,
        )
        await unless(team.join())
        run = RayRun(
            ground.plan,
            ground.head,
            team=team,
            journal=ground.journal,
            batch=options.batch,
            workers=options.workers,
        )
        prepared = Prepared(run, ground.plan, ground.head, ground.about)
        yield prepared
        ground.journal.close(finished=_finished(prepared))


@asynccontextmanager
async def with_service(
    counts: Mapping[str, float], options: Options, settings: Settings, unless: Unless
) -> AsyncIterator[Prepared]:
    """A run that asks a service at a steady rate.

    Args:
        counts: searches of each query as it was typed.
        options: what to do; ``url`` is set.
        settings: how long the service keeps answers, as far as it is known here.
        unless: guards what takes long before the run.

    Raises:
        PrecomputeError: the service does not answer, or the journal is of no use.
    """
    assert options.url is not None  # noqa: S101 - for the type checker
    plan, head = _plan(counts, lambda raw: _plain(raw, fold_case=options.fold_case), options)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(options.url))
        name, digest = await unless(served_version(client, options.version_name))
        about = About(name, digest, SCHEMA, plan.digest, options.url)
        journal = Journal(options.journal, about, not_before=_useful_since(settings))
        stack.callback(journal.close)
        # About one call a second, so that the engine is taken up evenly.
        size = max(1, min(MAX_BATCH, options.batch, math.ceil(options.rate)))
        filler = ServiceFiller(client, name, size=size)
        pace = Pace(options.rate)
        run = Run(plan, head, filler=filler, journal=journal, batch=options.batch, pace=pace)
        prepared = Prepared(run, plan, head, about)
        yield prepared
        journal.close(finished=_finished(prepared))


@asynccontextmanager
async def _ground(
    counts: Mapping[str, float], options: Options, settings: Settings
) -> AsyncIterator[_Ground]:
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
        redis = redis_of(settings, lifetimes, concurrency)
        stack.push_async_callback(redis.close)
        await redis.start()
        if not redis.up:
            raise PrecomputeError(
                "Redis does not answer at REQUERY_REDIS_URL; start it, or correct the address"
            )
        yield _Ground(store, version, plan, head, about, journal, redis, concurrency, lifetimes)


def _plan(
    counts: Mapping[str, float], normal_form: Callable[[str], str | None], options: Options
) -> tuple[Plan, int]:
    """All queries, and how many of them are to be done."""
    plan = Plan.of(counts, normal_form)
    head = plan.head(top=options.top, coverage=options.coverage)
    if not head:
        raise PrecomputeError("none of the queries can be rewritten; check the column")
    return plan, head


def _finished(prepared: Prepared) -> bool:
    tally = prepared.run.tally
    return not tally.stopped and not tally.count(Result.FAILED)


def _useful_since(settings: Settings) -> float:
    """Answers made before this are stale or gone: their queries are to be done again."""
    life = min(settings.cache_ttl_s, settings.cache_soft_ttl_s, settings.cache_empty_ttl_s)
    return time.time() - life * (1 - settings.cache_ttl_jitter)


def _client(url: str) -> httpx.AsyncClient:
    try:
        client = httpx.AsyncClient(base_url=url, timeout=_CALL_TIMEOUT)
    except (httpx.InvalidURL, ValueError) as error:
        raise PrecomputeError(f"--url: {error}; write http://host:port") from None
    if client.base_url.scheme not in ("http", "https") or not client.base_url.host:
        raise PrecomputeError("--url is an address such as http://localhost:8000")
    return client


def _normal(version: ModelVersion, raw: str) -> str | None:
    try:
        return version.normal_form(raw)
    except InvalidQuery:
        return None


def _plain(raw: str, *, fold_case: bool) -> str | None:
    text = normalise(raw, fold_case=fold_case)
    return text if 0 < len(text) <= MAX_QUERY_CHARS else None
