"""Makes the components of the service from the settings; starts none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry

from service.cache.lifetimes import Lifetimes
from service.cache.memory_tier import MemoryTier
from service.cache.metrics import CacheMetrics
from service.cache.purges import Purger, Purges, purges_document
from service.cache.redis_tier import RedisTier
from service.cache.tiered import TieredCache
from service.config.settings import Settings
from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.redis_store import RedisDocumentStore
from service.control.store import DocumentStore, LocalDocumentStore
from service.overrides.editor import OverrideEditor
from service.overrides.file import overrides_file
from service.overrides.live import Overrides, overrides_document
from service.overrides.metrics import OverrideMetrics
from service.overrides.table import Table
from service.pipeline.generations import Generations
from service.pipeline.goodput import Goodput
from service.pipeline.metrics import PipelineMetrics
from service.pipeline.observers import Experiments
from service.pipeline.preview import Preview
from service.pipeline.rewriter import Rewriter
from service.pipeline.single_flight import SingleFlight
from service.redis.client import AnyRedis, connect
from service.resilience.admission import Admission
from service.resilience.metrics import AdmissionMetrics, BreakerMetrics
from service.routing.document import Routing, routing_document
from service.routing.exposures import Exposures, choose_sink
from service.routing.metrics import ExposureMetrics, RoutingMetrics, ShadowMetrics
from service.routing.router import Router
from service.routing.shadow import Shadow
from service.telemetry.logging import query_fields
from service.telemetry.registry import service_registry
from service.versions.desired import DesiredVersions
from service.versions.loader import Loader
from service.versions.memory_budget import MemoryBudget
from service.versions.metrics import LoaderMetrics, ReconcilerMetrics, SupervisorMetrics
from service.versions.reconciler import Reconciler
from service.versions.registry import VersionRegistry
from service.versions.supervisor import Supervisor
from service.versions.version import EngineFactory, ModelVersion

_DOCUMENT_STORE_CONNECTIONS = 8
_EXPOSURE_CONNECTIONS = 2
_BACKGROUND_TIMEOUT_S = 2.0
"""Limit on Redis commands that no request waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeDependencies:
    """What the settings do not give: versions, engines and their limits.

    Attributes:
        versions: all known versions.
        engines: makes the engine of a version.
        memory: the memory that engines may take.
        find: looks up a version that came into the store after the start.
        gpu: whether engines run on a GPU.
    """

    versions: Sequence[ModelVersion]
    engines: EngineFactory
    memory: MemoryBudget = field(default_factory=MemoryBudget.unlimited)
    find: Callable[[str], Awaitable[ModelVersion]] | None = None
    gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The documents that all replicas share."""

    routing: Document[Routing]
    desired_versions: DesiredVersions
    overrides: Document[Table]
    purges: Document[Purges]

    async def refresh(self) -> None:
        """Read all of them concurrently: a Redis that hangs costs one timeout."""
        documents = (self.routing, self.desired_versions.document, self.overrides, self.purges)
        await asyncio.gather(*(document.refresh() for document in documents))


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """All components; only :mod:`factory` and :mod:`lifespan` see them together."""

    settings: Settings
    registry: CollectorRegistry
    versions: VersionRegistry
    memory: MemoryBudget
    document_store: DocumentStore
    documents: Documents
    router: Router
    loader: Loader
    reconciler: Reconciler
    supervisor: Supervisor
    overrides: Overrides
    editor: OverrideEditor
    cache: TieredCache
    redis: RedisTier | None
    purger: Purger
    flights: SingleFlight
    admission: Admission
    exposures: Exposures
    shadow: Shadow
    rewriter: Rewriter


def build_components(settings: Settings, dependencies: RuntimeDependencies) -> Components:
    """Make all components and connect them.

    Raises:
        UnknownVersion: the default version is not among the known ones.
        FileInvalid: the overrides file is missing or malformed.
        ValueError: the Redis URL is malformed, or exposures need a Redis and there is none.
    """
    registry = service_registry(release())
    metrics = PipelineMetrics(registry)
    control = ControlMetrics(registry)
    versions = VersionRegistry(dependencies.versions, default=settings.default_version)
    goodput = Goodput(registry)

    def show_version(version: ModelVersion) -> None:
        metrics.watch_engine(version.name, lambda: version.up)
        goodput.watch(version.name)

    versions.watch(show_version)
    document_store = _document_store(settings, control)
    documents = _documents(settings, document_store, control)
    routing = documents.routing
    router = Router(routing)
    control.watch_local_kill(lambda: router.local_kill is not None)
    breakers = BreakerMetrics(registry)
    loader = Loader(
        versions=versions,
        engines=dependencies.engines,
        on_tokens=metrics.count_tokens,
        memory=dependencies.memory,
        metrics=LoaderMetrics(registry),
        warm_queries=settings.warm_up(),
        load_timeout_s=settings.load_timeout_s,
        drain_timeout_s=settings.drain_timeout_s,
        used=router.versions,
    )
    reconciler = Reconciler(
        desired=documents.desired_versions,
        versions=versions,
        loader=loader,
        metrics=ReconcilerMetrics(registry),
        find=dependencies.find,
    )
    routing_metrics = RoutingMetrics(registry)
    routing_metrics.show(routing.value)

    def follow_routing(plan: Routing) -> None:
        versions.want_default(plan.default)
        routing_metrics.show(plan)
        reconciler.wake()

    routing.on_change(follow_routing)
    supervisor = Supervisor(
        versions=versions,
        loader=loader,
        desired=reconciler.desired,
        metrics=SupervisorMetrics(registry),
        breakers=breakers,
        stall_s=settings.engine_stall_s,
    )
    overrides = _overrides(settings, documents.overrides, registry)
    cache, redis = _cache(settings, registry, breakers)
    flights = SingleFlight(bound_s=settings.generation_timeout_s)
    admission = Admission(
        AdmissionMetrics(registry),
        highest=settings.most_candidates(gpu=dependencies.gpu),
        target_s=settings.target_ms(gpu=dependencies.gpu) / 1000,
        max_waiting=settings.admission_max_waiting,
    )
    generations = Generations(
        cache=cache,
        flights=flights,
        admission=admission,
        metrics=metrics,
        max_refreshing=settings.refresh_max_in_flight,
    )
    exposures = _exposures(settings, registry)
    shadow = Shadow(
        wanted=router.shadow,
        generate=Preview(versions=versions, overrides=overrides, generations=generations),
        foreground=flights.__len__,
        metrics=ShadowMetrics(registry),
        max_foreground=settings.shadow_max_foreground,
        timeout_s=settings.generation_timeout_s,
        query_fields=query_fields(
            settings.log_queries, salt=settings.log_query_salt.get_secret_value()
        ),
    )
    rewriter = Rewriter(
        router=router,
        versions=versions,
        overrides=overrides,
        generations=generations,
        metrics=metrics,
        observers=[goodput, Experiments(exposures, shadow)],
    )
    return Components(
        settings=settings,
        registry=registry,
        versions=versions,
        memory=dependencies.memory,
        document_store=document_store,
        documents=documents,
        router=router,
        loader=loader,
        reconciler=reconciler,
        supervisor=supervisor,
        overrides=overrides,
        editor=OverrideEditor(documents.overrides, overrides),
        cache=cache,
        redis=redis,
        purger=Purger(documents.purges, cache),
        flights=flights,
        admission=admission,
        exposures=exposures,
        shadow=shadow,
        rewriter=rewriter,
    )


def release() -> str:
    """Version of this program."""
    try:
        return version("requery-search")
    except PackageNotFoundError:  # run out of a source tree that is not installed
        return "0+unknown"


def _document_store(settings: Settings, metrics: ControlMetrics) -> DocumentStore:
    client = _client(settings, connections=_DOCUMENT_STORE_CONNECTIONS)
    return LocalDocumentStore() if client is None else RedisDocumentStore(client, metrics)


def _documents(
    settings: Settings, document_store: DocumentStore, metrics: ControlMetrics
) -> Documents:
    return Documents(
        routing=routing_document(document_store, default=settings.default_version, metrics=metrics),
        desired_versions=DesiredVersions(
            document_store, initial=[settings.default_version], metrics=metrics
        ),
        overrides=overrides_document(document_store, metrics),
        purges=purges_document(document_store, metrics),
    )


def _overrides(
    settings: Settings, document: Document[Table], registry: CollectorRegistry
) -> Overrides:
    metrics = OverrideMetrics(registry)
    file = None
    if settings.overrides_file is not None:
        file = overrides_file(settings.overrides_file, metrics)
        file.load()
    return Overrides(document, file=file, metrics=metrics)


def _cache(
    settings: Settings, registry: CollectorRegistry, breakers: BreakerMetrics
) -> tuple[TieredCache, RedisTier | None]:
    lifetimes = Lifetimes.of(settings)
    metrics = CacheMetrics(registry)
    memory = MemoryTier(max_bytes=settings.cache_memory_bytes, lifetimes=lifetimes, metrics=metrics)
    write_budget_s = settings.redis_write_budget_ms / 1000
    client = _client(
        settings,
        connections=settings.redis_max_connections,
        # Reads and writes have budgets of their own; this ends the commands that exceeded them.
        timeout_s=max(1.0, write_budget_s),
    )
    redis = None
    if client is not None:
        redis = RedisTier(
            client,
            lifetimes=lifetimes,
            read_budget_s=settings.redis_read_budget_ms / 1000,
            write_budget_s=write_budget_s,
            concurrency=settings.redis_max_connections,
            max_bytes=settings.cache_redis_bytes,
            metrics=metrics,
            breakers=breakers,
        )
    read_budget_s = settings.redis_read_budget_ms / 1000
    return TieredCache(memory, redis, lifetimes=lifetimes, read_budget_s=read_budget_s), redis


def _exposures(settings: Settings, registry: CollectorRegistry) -> Exposures:
    client = None
    if settings.exposures in ("auto", "redis"):
        client = _client(settings, connections=_EXPOSURE_CONNECTIONS)
    sink = choose_sink(settings.exposures, client, max_entries=settings.exposures_max_entries)
    return Exposures(sink, ExposureMetrics(registry))


def _client(
    settings: Settings, *, connections: int, timeout_s: float = _BACKGROUND_TIMEOUT_S
) -> AnyRedis | None:
    """A client with connections of its own, so that no component waits for those of another."""
    if settings.redis_url is None:
        return None
    url = settings.redis_url.get_secret_value()
    try:
        return connect(url, max_connections=connections, timeout_s=timeout_s)
    except ValueError as error:
        raise ValueError(f"REQUERY_REDIS_URL: {error}") from None
