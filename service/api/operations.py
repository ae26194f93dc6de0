"""Health checks and metrics."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.api.direct import DirectRoute
from service.api.operator_schemas import Liveness, Readiness
from service.api.responses import json_response
from service.api.schemas import problems
from service.errors import NotReady
from service.security.auth import Guard
from service.versions.registry import VersionRegistry
from service.versions.state import State

SERVER_STATE = "requery.server"
"""Key of the :class:`ServerState` in ``scope["state"]``."""


class ServerState(Protocol):
    """What the application reads of the server; the server adds it to the ASGI state."""

    stopping: bool
    """Whether the server is stopping."""

    @property
    def registry(self) -> CollectorRegistry:
        """The server's own metrics."""


class OperationsApi:
    """Routes that read the state of the process.

    Args:
        versions: the versions and their states.
        registry: the application's metrics.
        guard: checks who may read the metrics.
    """

    def __init__(
        self, *, versions: VersionRegistry, registry: CollectorRegistry, guard: Guard
    ) -> None:
        self._versions = versions
        self._registry = registry
        self._guard = guard

    def router(self) -> APIRouter:
        """The routes, with their OpenAPI."""
        router = APIRouter(route_class=DirectRoute, tags=["Operations"])
        router.add_api_route(
            "/livez",
            self.live,
            methods=["GET"],
            summary="Is the process alive",
            responses={200: {"model": Liveness}},
        )
        router.add_api_route(
            "/readyz",
            self.ready,
            methods=["GET"],
            summary="Would a request be answered by the engine",
            responses={200: {"model": Readiness}, **problems(503)},
        )
        router.add_api_route(
            "/metrics",
            self.scrape,
            methods=["GET"],
            summary="Prometheus metrics",
            response_class=PlainTextResponse,
            responses=problems(401, 403),
        )
        return router

    async def live(self, request: Request) -> Response:  # noqa: ARG002 - FastAPI's shape
        """200 as long as the event loop runs."""
        return json_response({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """200 once the default version is loaded and healthy, else 503 with the reason."""
        server = _server(request)
        if server is not None and server.stopping:
            raise NotReady("the service is stopping; ask another replica")
        version = self._versions.default
        if version.up:
            return json_response({"status": "ready", "model_version": version.name})
        if version.replacing:
            raise NotReady(f"the engine of version {version.name} is being replaced")
        if version.state is State.READY:
            what = "does not answer" if version.suspected else "has died"
            raise NotReady(f"the engine of version {version.name} {what}; it will be replaced")
        reason = f": {version.reason}" if version.reason else ""
        raise NotReady(f"version {version.name} is {version.state.value}{reason}")

    async def scrape(self, request: Request) -> Response:
        """All ``requery_*`` metrics in the Prometheus text format."""
        self._guard.check(request)
        text = generate_latest(self._registry)
        server = _server(request)
        if server is not None:
            text += generate_latest(server.registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _server(request: Request) -> ServerState | None:
    """The server; ``None`` if the application is called in process."""
    server: ServerState | None = request.scope.get("state", {}).get(SERVER_STATE)
    return server
