"""Composition root: makes the FastAPI application from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from service.api import problems
from service.api.body import DeadlinePolicy
from service.api.cache import CacheApi
from service.api.console import Console
from service.api.direct import DirectMiddleware
from service.api.docs import docs_router
from service.api.limits import EXEMPT, RateLimitMiddleware, buckets
from service.api.metrics import ApiMetrics
from service.api.middleware import BodyLimitMiddleware, RequestContextMiddleware
from service.api.openapi import document
from service.api.operations import OperationsApi
from service.api.overrides import OverridesApi
from service.api.rewriting import RewritingApi
from service.api.routing import ControlApi
from service.api.versions import VersionsApi
from service.app.components import Components, RuntimeDependencies, build_components, release
from service.app.lifespan import lifespan
from service.config.settings import Settings
from service.pipeline.relevance import Tagger
from service.security.auth import Auth
from service.security.keyring import KeyRing
from service.security.metrics import AuthMetrics, KeyMetrics
from service.telemetry.logging import query_fields
from service.telemetry.tracing import Tracing, TracingMiddleware, traced


def create_app(
    settings: Settings,
    dependencies: RuntimeDependencies,
    *,
    on_load_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Make the application.

    Once it starts, versions are loaded in the background. Until the default is ready, ``/livez``
    answers 200, ``/readyz`` 503, and ``/rewrite`` from the cache, else with ``status: fallback``.

    Args:
        settings: all options.
        dependencies: versions, engines and their limits.
        on_load_failure: called if the default version cannot be loaded at the start.

    Raises:
        UnknownVersion: the default version is not among the known ones.
        FileInvalid: the overrides file or the API keys file is missing or malformed.
        ValueError: the Redis URL is malformed, exposures need a Redis and there is none, or traces
            are configured and OpenTelemetry is not installed.
    """
    # The application keeps only the hash of the admin key.
    components = build_components(settings.model_copy(update={"admin_key": None}), dependencies)
    auth = _auth(settings, components.registry)
    tracing = None
    if settings.otlp_endpoint is not None:
        tracing = Tracing.to_collector(
            settings.otlp_endpoint, sample=settings.trace_sample, release=release()
        )

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        async with traced(tracing), auth.keys.followed(), lifespan(components, on_load_failure):
            yield

    app = FastAPI(
        title="Requery",
        version=release(),
        description="Rewrites shopping queries, each tagged with its relevance.",
        lifespan=running,
        docs_url=None,  # FastAPI's page takes its files from another host
        redoc_url=None,
        # A redirect would name http:// behind a proxy that ends TLS.
        redirect_slashes=False,
    )
    for router in _routers(components, auth, gpu=dependencies.gpu):
        app.include_router(router)
        app.include_router(router, prefix="/v1", include_in_schema=False)
    app.include_router(docs_router())
    console = Console() if settings.console else None
    if console is not None:
        app.include_router(console.router())
    problems.install(app)
    # The one added last is the outermost.
    app.add_middleware(DirectMiddleware, routes=app.routes)
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    if settings.rate_limit_per_s:
        limit = settings.rate_limit_per_s, settings.rate_limit_burst
        app.add_middleware(
            RateLimitMiddleware,
            auth=auth,
            keys=buckets(*limit),
            addresses=buckets(*limit),
            # The page loads many small files at once.
            exempt=EXEMPT if console is None else EXEMPT | console.paths,
        )
    app.add_middleware(
        RequestContextMiddleware,
        metrics=ApiMetrics(components.registry),
        log_requests=settings.log_requests,
    )
    if tracing is not None:
        app.add_middleware(TracingMiddleware, tracing=tracing)
    app.openapi = document(app)  # type: ignore[method-assign] # FastAPI's documented way
    return app


def _auth(settings: Settings, registry: CollectorRegistry) -> Auth:
    """Authentication; reads the file of API keys."""
    key_metrics = KeyMetrics(registry)
    keys = KeyRing(admin=settings.admin_key, file=settings.api_keys_file, metrics=key_metrics)
    keys.load()
    return Auth(keys, AuthMetrics(registry), on_use=key_metrics.used)


def _routers(components: Components, auth: Auth, *, gpu: bool) -> list[APIRouter]:
    settings, versions = components.settings, components.versions
    guard, reader = auth.guard("admin"), auth.guard("any")
    slow = DeadlinePolicy(settings.max_deadline_ms, settings.max_deadline_ms)
    routing = components.documents.routing
    return [
        RewritingApi(
            rewriter=components.rewriter,
            tagger=Tagger(versions, components.admission),
            rewrite_deadline=DeadlinePolicy(
                settings.deadline_ms(gpu=gpu), settings.max_deadline_ms
            ),
            tag_deadline=slow,
            query_fields=query_fields(
                settings.log_queries, salt=settings.log_query_salt.get_secret_value()
            ),
            guard=auth.guard("rewrite"),
            batch_concurrency=settings.batch_concurrency,
        ).router(),
        VersionsApi(
            versions=versions,
            reconciler=components.reconciler,
            loader=components.loader,
            memory=components.memory,
            weights=lambda: routing.value.weights,
            guard=guard,
            reader=reader,
            wait_s=settings.load_timeout_s,
        ).router(),
        ControlApi(
            routing=routing,
            versions=versions,
            document_store=components.document_store,
            assigner=components.router,
            guard=guard,
            reader=reader,
        ).router(),
        OverridesApi(
            overrides=components.overrides, editor=components.editor, guard=guard
        ).router(),
        CacheApi(purger=components.purger, versions=versions, guard=guard).router(),
        OperationsApi(
            versions=versions, registry=components.registry, guard=auth.guard("metrics")
        ).router(),
    ]
