"""The service with its console, on scripted engines: two versions loaded, a third one not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.settings import Settings
from service.versions.version import ModelVersion
from tests.support.engine import Script, ScriptedEngine
from tests.support.http_server import listening
from tests.support.versions import Engines, make_manifest

ADMIN_KEY = "correct-horse-battery-staple"

FIRST: dict[str, Script] = {
    "steele stake": [("steel stake", 0.984), ("steel garden stake", 0.913), ("steele stake", 0.9),
                     ("metal stakes", 0.874), ("steel steak knife", 0.112), ("metal stake", 0.86)],
    "outdoor rug": [("outdoor rug for patio", 0.991), ("vinyl rug", 0.905), ("rug", 0.31)],
    "2x4 lumber 8 ft": [("2x4 lumber 8 foot", 0.972), ("2x6 lumber 8 ft", 0.44)],
    "kids rain boots": [("rain boots for kids", 0.969), ("children rain boots", 0.951)],
}  # fmt: skip
SECOND: dict[str, Script] = {
    "steele stake": [("steel stake", 0.991), ("steel landscape stake", 0.931),
                     ("garden post", 0.2)],
    "outdoor rug": [("outdoor rug for patio", 0.987), ("outdoor carpet", 0.962)],
    "2x4 lumber 8 ft": [("2x4 lumber 8 foot", 0.978)],
    "kids rain boots": [("rain boots for kids", 0.974), ("children rain boots", 0.942)],
}  # fmt: skip
DESCRIPTIONS = {
    "demo-1": "scripted: what is served",
    "demo-2": "scripted: the candidate",
    "demo-3": "scripted: not loaded",
}


@dataclass
class Served:
    """A service that can be stopped and started again at the same address."""

    url: str
    engines: Engines
    client: httpx.AsyncClient
    stack: AsyncExitStack
    options: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def call(self, method: str, path: str, **given: Any) -> httpx.Response:
        """A call of somebody else."""
        response = await self.client.request(method, path, **given)
        response.raise_for_status()
        return response

    async def ask(self, *queries: str, **fields: Any) -> None:
        """Requests of shoppers."""
        for query in queries:
            await self.call("POST", "/rewrite", json={"query": query, **fields})

    async def stop(self) -> None:
        await self.stack.aclose()

    async def start(self) -> None:
        """Listen at the same port again, with an engine of its own."""
        self.engines.give("demo-1", _first())
        await self.stack.enter_async_context(
            listening(make=_maker(self.engines), port=self.port, **self.options)
        )


@asynccontextmanager
async def serving(*, key: str | None = None, **options: Any) -> AsyncIterator[Served]:
    """A service, ready, with ``demo-1`` as its default and ``demo-2`` loaded too.

    Args:
        key: what callers other than the page use; default: the admin key of the settings, if any.
        options: settings.
    """
    options = {"default_version": "demo-1"} | options
    engines = Engines(
        demo_1=_first(), demo_2=ScriptedEngine(SECOND, default=[("another one", 0.8)])
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(listening(make=_maker(engines), **options))
        url = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            served = Served(url, engines, client, stack, options)
            key = key or options.get("admin_key")
            if key is not None:
                client.headers["authorization"] = f"Bearer {key}"
            await served.call("POST", "/versions/demo-2/load?wait=true")
            yield served


def _first() -> ScriptedEngine:
    return ScriptedEngine(FIRST, default=[("a rewrite", 0.9)])


def _maker(engines: Engines) -> Any:
    async def make(settings: Settings) -> FastAPI:
        await asyncio.sleep(0)
        versions = [
            ModelVersion(make_manifest(name, description=text))
            for name, text in DESCRIPTIONS.items()
        ]
        return create_app(settings, RuntimeDependencies(versions=versions, engines=engines))

    return make
