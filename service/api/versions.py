"""``/versions``: lists, loads and unloads model versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.direct import DirectRoute
from service.api.operator_schemas import VersionInfo, VersionsResponse
from service.api.responses import NO_STORE, json_response
from service.api.schemas import AUTHOR, parameter, parameters, problems
from service.errors import FieldError, InvalidRequest, LoadFailed, VersionNotLoaded
from service.security.auth import Guard
from service.telemetry.request_context import context_of
from service.versions.loader import Loader
from service.versions.memory_budget import MemoryBudget
from service.versions.reconciler import Reconciler
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion

Weights = Callable[[], Mapping[str, float]]
"""Share of each version by name, as the routing document has it; empty if all goes to the
default."""

_DIGITS = 3
"""Decimals of a latency on the wire, in milliseconds."""


class VersionsApi:
    """Routes that show, load and unload versions.

    Args:
        versions: all known versions.
        reconciler: loads and unloads versions on all replicas.
        loader: runs loads and unloads.
        memory: memory of the engines.
        weights: shares of the versions.
        guard: checks who may load and unload.
        reader: checks who may list.
        wait_s: longest wait of ``?wait=true`` in seconds.
    """

    def __init__(
        self,
        *,
        versions: VersionRegistry,
        reconciler: Reconciler,
        loader: Loader,
        memory: MemoryBudget,
        weights: Weights,
        guard: Guard,
        reader: Guard,
        wait_s: float,
    ) -> None:
        self._versions = versions
        self._reconciler = reconciler
        self._loader = loader
        self._memory = memory
        self._weights = weights
        self._guard = guard
        self._reader = reader
        self._wait_s = wait_s

    def router(self) -> APIRouter:
        """The routes, with their OpenAPI."""
        router = APIRouter(route_class=DirectRoute, tags=["Versions"])
        router.add_api_route(
            "/versions",
            self.list_versions,
            methods=["GET"],
            summary="Model versions",
            operation_id="list_versions",
            responses={200: {"model": VersionsResponse}, **problems(401)},
        )
        info = {"model": VersionInfo}
        router.add_api_route(
            "/versions/{name}",
            self.show,
            methods=["GET"],
            summary="One model version",
            operation_id="get_version",
            responses={200: info, **problems(401, 404)},
            openapi_extra=parameters(_NAME),
        )
        router.add_api_route(
            "/versions/{name}/load",
            self.load,
            methods=["POST"],
            summary="Load a version, here and on all replicas",
            operation_id="load_version",
            responses={
                200: {**info, "description": "It is ready."},
                202: {**info, "description": "It is on its way."},
                **problems(401, 403, 404, 409, 412, 422, 500, 503, 507),
            },
            openapi_extra=_PARAMETERS,
        )
        router.add_api_route(
            "/versions/{name}/unload",
            self.unload,
            methods=["POST"],
            summary="Drain and unload a version, here and on all replicas",
            operation_id="unload_version",
            responses={
                200: {**info, "description": "It is unloaded."},
                202: {**info, "description": "Requests under way are waited for."},
                204: {"description": "It is not known here; other replicas unload it."},
                **problems(401, 403, 404, 409, 412, 422, 503),
            },
            openapi_extra=_PARAMETERS,
        )
        return router

    async def list_versions(self, request: Request) -> Response:
        """Every version of the store: its state in this process, its traffic and its latency."""
        self._reader.check(request)
        loaded = [version.manifest for version in self._versions if version.holds_memory]
        content = {
            "default": self._versions.default.name,
            "durable": self._reconciler.durable,
            "memory": {
                "limit_bytes": self._memory.limit_bytes,
                "reserved_bytes": self._memory.reserved(loaded),
            },
            "versions": [self._shown(version) for version in self._versions],
        }
        return json_response(content)

    async def show(self, request: Request) -> Response:
        """The version as in the list of all."""
        self._reader.check(request)
        return json_response(self._shown(self._versions.get(request.path_params["name"])))

    async def load(self, request: Request) -> Response:
        """Answers at once with the state; with ``wait`` once it is ready or has failed.

        If it does not fit the memory, or the wish cannot be stored for the other replicas, nothing
        is loaded.
        """
        author = self._guard.check(request)
        wait = _flag(request, "wait")
        version = await self._reconciler.load(request.path_params["name"], author=author)
        context_of(request.scope).fields.update(change="load", version=version.name)
        if wait:
            await self._until_loaded(version)
        return json_response(self._shown(version), 200 if version.state is State.READY else 202)

    async def unload(self, request: Request) -> Response:
        """No request is routed to it from now on; with ``wait`` answers once its engine is gone.

        A load that is under way is given up.
        """
        author = self._guard.check(request)
        wait = _flag(request, "wait")
        version = await self._reconciler.unload(request.path_params["name"], author=author)
        context_of(request.scope).fields["change"] = "unload"
        if version is None:
            return Response(status_code=204, headers=NO_STORE)
        context_of(request.scope).fields["version"] = version.name
        if wait:
            await self._loader.finished(version.name, timeout_s=self._wait_s)
        return json_response(self._shown(version), 200 if version.state is State.AVAILABLE else 202)

    async def _until_loaded(self, version: ModelVersion) -> None:
        failure: Exception | None = None
        try:
            await self._loader.finished(version.name, timeout_s=self._wait_s)
        except VersionNotLoaded:
            raise
        except Exception as error:  # noqa: BLE001 - the version keeps its reason
            failure = error
        # The load may have failed while its document was written.
        if version.state is State.FAILED:
            raise LoadFailed(
                f"version {version.name} could not be loaded: {version.reason}"
            ) from failure

    def _shown(self, version: ModelVersion) -> dict[str, Any]:
        default = version is self._versions.default
        weights = self._weights() or {self._versions.default.name: 1.0}
        latency = version.in_flight.latency()
        shop = version.manifest.catalogue
        return {
            "name": version.name,
            "description": version.manifest.description,
            "digest": version.digest,
            "state": version.state.value,
            "reason": version.reason,
            "default": default,
            "wanted": version.name in self._reconciler.desired(),
            "weight": weights.get(version.name, 0.0),
            "requests": version.in_flight.requests,
            "in_flight": version.in_flight.count,
            "latency_ms": latency
            and {
                "p50": round(latency.p50 * 1000, _DIGITS),
                "p95": round(latency.p95 * 1000, _DIGITS),
            },
            "catalogue": shop and {"products": shop.products, "made_at": shop.made_at.isoformat()},
            "memory_bytes": self._memory.estimate(version.manifest),
            "matrices": version.matrices,
        }


_NAME = parameter("path", "name", "Of the version.")
_PARAMETERS = parameters(
    _NAME,
    parameter(
        "query",
        "wait",
        "Answer only once it is done, or has failed.",
        type="boolean",
        default=False,
    ),
    AUTHOR,
)


def _flag(request: Request, name: str) -> bool:
    """A boolean parameter of the query string.

    Raises:
        InvalidRequest: it is neither true nor false.
    """
    given = request.query_params.get(name, "false")
    if given not in ("true", "false"):
        raise InvalidRequest([FieldError(f"query {name}", "must be true or false")])
    return given == "true"
