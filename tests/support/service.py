"""A whole application on a scripted engine, called in process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from asgi_lifespan import LifespanManager
from fastapi import FastAPI

from model_store.manifest import Manifest
from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.versions.version import ModelVersion, OnTokens
from tests.support.engine import ScriptedEngine
from tests.support.versions import Engines, make_manifest


@dataclass
class Service:
    """A running application and the parts that tests look at."""

    app: FastAPI
    client: httpx.AsyncClient
    engine: ScriptedEngine

    async def rewrite(self, query: str, **fields: Any) -> dict[str, Any]:
        response = await self.client.post("/rewrite", json={"query": query, **fields})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def until_ready(self) -> None:
        await self.until(self._is_ready)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Let the event loop turn until ``holds()``; the test's own timeout bounds it."""
        while not await holds():  # noqa: ASYNC110 - what is waited for has no event
            # In-process calls never yield by themselves.
            await asyncio.sleep(0)

    async def idle(self) -> None:
        """Wait until no generation is under way."""

        async def none_under_way() -> bool:
            return not await self.metric("requery_generations_in_flight")

        await self.until(none_under_way)

    async def _is_ready(self) -> bool:
        return (await self.client.get("/readyz")).status_code == 200

    async def metric(self, name: str, **labels: str) -> float:
        """Value of one sample; 0 if it is not there."""
        from prometheus_client.parser import text_string_to_metric_families

        text = (await self.client.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0


_DEFAULTS: dict[str, Any] = {
    "default_version": "test-1",
    "warm_queries": ";",
    # Tests hold engines for as long as it takes.
    "engine_stall_s": 3600.0,
}

Serve = Callable[..., Awaitable[Service]]


@asynccontextmanager
async def serving() -> AsyncIterator[Serve]:
    """Starts services: ``serve(engine, more_versions=..., ready=..., **settings)``."""
    async with AsyncExitStack() as stack:

        async def start(
            engine: ScriptedEngine | None = None,
            *,
            wrap: Callable[[Engine], Engine] = lambda engine: engine,
            more_versions: tuple[ModelVersion, ...] = (),
            more_engines: Engines | None = None,
            ready: bool = True,
            on_load_failure: Callable[[Exception], None] | None = None,
            **options: Any,
        ) -> Service:
            scripted = engine or ScriptedEngine()

            others = more_engines or Engines()

            async def factory(manifest: Manifest, on_tokens: OnTokens) -> Engine:
                if manifest.name != "test-1":
                    return await others(manifest, on_tokens)
                scripted.on_tokens = on_tokens
                return wrap(scripted)

            app = create_app(
                Settings(**(_DEFAULTS | options)),
                RuntimeDependencies(
                    versions=[ModelVersion(make_manifest()), *more_versions], engines=factory
                ),
                on_load_failure=on_load_failure,
            )
            await stack.enter_async_context(
                LifespanManager(app, startup_timeout=60, shutdown_timeout=60)
            )
            transport = httpx.ASGITransport(app=app)
            client = await stack.enter_async_context(
                httpx.AsyncClient(transport=transport, base_url="http://test")
            )
            service = Service(app, client, scripted)
            if ready:
                await service.until_ready()
            return service

        yield start
