"""``POST /cache/purge``: removes cached answers on all replicas."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.body import read_json
from service.api.direct import DirectRoute
from service.api.operator_schemas import PurgeRequest, PurgeResponse
from service.api.responses import json_response
from service.api.schemas import AUTHOR, parameters, problems, request_body
from service.cache.purges import Purger
from service.errors import FieldError, InvalidRequest
from service.security.auth import Guard
from service.telemetry.request_context import context_of
from service.versions.registry import VersionRegistry


class CacheApi:
    """The route that purges the cache.

    Args:
        purger: purges all tiers.
        versions: whose answers can be purged.
        guard: checks who may purge.
    """

    def __init__(self, *, purger: Purger, versions: VersionRegistry, guard: Guard) -> None:
        self._purger = purger
        self._versions = versions
        self._guard = guard

    def router(self) -> APIRouter:
        """The route, with its OpenAPI."""
        router = APIRouter(route_class=DirectRoute, tags=["Cache"])
        router.add_api_route(
            "/cache/purge",
            self.purge,
            methods=["POST"],
            summary="Forget cached answers: of a query, of a version, or of a query by a version",
            operation_id="purge_cache",
            responses={
                200: {"model": PurgeResponse},
                **problems(400, 401, 403, 404, 413, 415, 422, 503),
            },
            openapi_extra=request_body(PurgeRequest) | parameters(AUTHOR),
        )
        return router

    async def purge(self, request: Request) -> Response:
        """How many entries went; a generation that is under way may bring one back."""
        author = self._guard.check(request)
        body = await read_json(request, PurgeRequest)
        named = None if body.model_version is None else self._versions.get(body.model_version)
        if body.query is not None:
            versions = [named] if named is not None else list(self._versions)
            forms = [(known.digest, known.normal_form(body.query)) for known in versions]
            purged = await self._purger.query(forms, author=author)
        elif named is not None:
            purged = await self._purger.version(named.digest, author=author)
        else:
            raise InvalidRequest([FieldError("query", "is required, or model_version, or both")])
        context_of(request.scope).fields.update(
            purged_memory=purged.memory, purged_redis=purged.redis
        )
        content = {
            "memory": purged.memory,
            "redis": purged.redis,
            "replicas": "all" if self._purger.durable else "this one",
        }
        return json_response(content)
