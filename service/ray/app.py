"""The application for Ray Serve: ``import_path: service.ray.app:build``.

There are two kinds of deployment. Replicas of ``ingress`` run the whole service of
:mod:`service.app.factory` (HTTP, routes, cache, single flight, admission) without a model. Replicas
of ``engine-<version>`` run one engine each, and the ingress calls them by a deployment handle. The
Serve config (deploy/ray/serve.yaml) gives their numbers and resources.

This is the only module of the online path that imports ray.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from model_store.manifest import Manifest, VersionName
from service.app.factory import create_app
from service.config.service_links import log_service_links
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.errors import EngineUnavailable, LoadFailed
from service.ray.dependencies import FROM_STORE, provider
from service.ray.host import EngineHost
from service.ray.remote import RemoteEngine, Reply, Stream
from service.ray.wire import Item, Refusal, Tagged
from service.security.auth import require_keys
from service.telemetry.logging import configure_logging
from service.versions.memory_budget import MemoryBudget
from service.versions.version import OnTokens

_RUNNING = "RUNNING"


class Arguments(BaseModel):
    """``args`` of the application in the Serve config."""

    model_config = ConfigDict(extra="forbid")

    versions: list[VersionName] = Field(min_length=1)
    """Model versions; each has a deployment of engines."""
    supply: str = FROM_STORE
    """``package.module:function`` that gives the runtime dependencies."""


class EngineReplica:
    """A replica of ``engine-<version>``.

    Args:
        name: of the version.
        supply: see :class:`Arguments`.

    Raises:
        LoadFailed: the version is not in the store, or cannot be used.
        Exception: any other fault of the start; Ray Serve tries again.
    """

    async def __init__(self, name: str, supply: str) -> None:  # type: ignore[misc] # awaited by Serve
        settings = _with_threads(_settings())
        dependencies = await provider(supply)(settings)
        version = next((one for one in dependencies.versions if one.name == name), None)
        if version is None:
            if dependencies.find is None:
                raise LoadFailed(f"version {name} is not in the model store")
            version = await dependencies.find(name)
        self._host = EngineHost(version, dependencies.engines, settings, leave=_leave)
        await self._host.load()

    async def generate(self, query: str) -> AsyncIterator[Item | Refusal]:
        """See :meth:`EngineHost.generate`."""
        async with aclosing(self._host.generate(query)) as items:
            async for item in items:
                yield item

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> Tagged | Refusal:
        """See :meth:`EngineHost.tag`."""
        return await self._host.tag(pairs)

    async def __del__(self) -> None:
        """Close the engine: Ray Serve calls this before it ends a replica."""
        host: EngineHost | None = getattr(self, "_host", None)
        if host is not None:
            await host.close()


class Ingress:
    """A replica of ``ingress``: the application of :func:`service.app.factory.create_app`.

    Args:
        supply: see :class:`Arguments`.
        engines: the handle of each version's deployment.

    Raises:
        ValueError: an option is wrong, or the proxies would be open without an API key.
    """

    async def __init__(  # type: ignore[misc] # awaited by Serve
        self, supply: str, engines: Mapping[str, DeploymentHandle]
    ) -> None:
        settings = _settings()
        # Ray Serve listens. Unless the settings say that it does so for this machine alone, assume
        # that other machines can reach it.
        if "host" not in settings.model_fields_set:
            settings = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104 - to be checked
        require_keys(settings)
        dependencies = await provider(supply)(settings)
        self._made = create_app(
            settings,
            replace(dependencies, engines=_factory(engines), memory=MemoryBudget.unlimited()),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, for Ray Serve's wrapper."""
        return self._made


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config.

    Args:
        args: fields of :class:`Arguments`.
    """
    arguments = Arguments.model_validate(args)
    engines = {
        name: serve.deployment(EngineReplica)
        .options(name=deployment_name(name), health_check_period_s=2.0)
        .bind(name, arguments.supply)
        for name in arguments.versions
    }
    ingress = serve.deployment(serve.ingress()(Ingress)).options(name="ingress")
    return ingress.bind(arguments.supply, engines)


def deployment_name(version: str) -> str:
    """Name of the deployment that runs the engines of a version."""
    return f"engine-{version}"


class _HandleCalls:
    """A deployment handle (:class:`service.ray.remote.Calls`)."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._generate = handle.generate.options(stream=True)
        self._tag = handle.tag

    def generate(self, query: str) -> Stream:
        stream: Stream = self._generate.remote(query)
        return stream

    def tag(self, pairs: Sequence[tuple[str, str]]) -> Reply:
        reply: Reply = self._tag.remote(pairs)
        return reply


def _factory(engines: Mapping[str, DeploymentHandle]) -> Callable[..., Any]:
    """Makes the engine of a version that has a deployment."""
    application = serve.get_replica_context().app_name

    async def make(manifest: Manifest, on_tokens: OnTokens) -> Engine:
        handle = engines.get(manifest.name)
        if handle is None:
            raise EngineUnavailable(
                f"version {manifest.name} has no deployment; add it to 'versions' in the Serve "
                "config and deploy that"
            )
        name = deployment_name(manifest.name)

        async def running() -> int:
            return await asyncio.to_thread(_replicas, application, name)

        return RemoteEngine(_HandleCalls(handle), running, name=name, on_tokens=on_tokens)

    return make


def _replicas(application: str, deployment: str) -> int:
    """How many replicas of a deployment run, according to the controller."""
    status = serve.status().applications[application].deployments[deployment]
    return int(status.replica_states.get(_RUNNING, 0))


def _settings() -> Settings:
    settings = Settings()
    configure_logging(settings.log_level)
    log_service_links()
    return settings


def _with_threads(settings: Settings) -> Settings:
    """With as many threads of a CPU engine as Ray has assigned cores, if it has assigned any."""
    given = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
    if settings.engine_threads is not None or given < 1:
        return settings
    return settings.model_copy(update={"engine_threads": given})


def _leave() -> None:
    # Ray Serve notices at once, and fails the calls in flight.
    os._exit(1)
