"""``/routing`` and ``/audit``."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.body import read_json
from service.api.conditions import entity_tag, expected_revision
from service.api.direct import DirectRoute
from service.api.operator_schemas import AuditResponse, RoutingResponse
from service.api.paging import Paging
from service.api.responses import json_response
from service.api.schemas import (
    AUTHOR,
    ETAG,
    IF_MATCH_REQUIRED,
    parameters,
    problems,
    request_body,
)
from service.control.audit import Change, note
from service.control.documents import Document
from service.control.store import AUDIT_ENTRIES, DocumentStore
from service.errors import (
    DocumentStoreUnavailable,
    FieldError,
    InvalidRequest,
    UnknownVersion,
    VersionNotLoaded,
)
from service.routing.document import Kill, Routing, RoutingPlan
from service.routing.router import Router
from service.security.auth import Guard
from service.telemetry.request_context import context_of

_AUDIT = Paging(most=AUDIT_ENTRIES, default=100)
_NOTE_S = 0.25
"""Longest wait of a local change for the shared audit trail in seconds."""
_STOP_HERE = (
    "to stop this replica alone, at once and without Redis, send the same to PUT "
    "/routing/kill/local, and so to every other replica"
)


class KnownVersions(Protocol):
    """The versions, as far as routing needs them."""

    def get(self, name: str) -> object:
        """The version; raises UnknownVersion if no version has that name."""

    def ready_names(self) -> Collection[str]:
        """Names of the versions that this replica can route to."""


class ControlApi:
    """Routes of the A/B router, its kill switches and the audit trail.

    A version must be known and ready on this replica before it gets requests. Unchanged parts of a
    plan are not checked again, so that others can be changed beside a dead version.

    Args:
        routing: the shared document.
        versions: the versions that can get requests.
        document_store: keeps the audit trail.
        guard: checks who may change the routing and read the audit trail.
        reader: checks who may read the routing.
        assigner: the router of this replica, with its local kill switch.
    """

    def __init__(
        self,
        *,
        routing: Document[Routing],
        versions: KnownVersions,
        document_store: DocumentStore,
        assigner: Router,
        guard: Guard,
        reader: Guard,
    ) -> None:
        self._routing = routing
        self._versions = versions
        self._document_store = document_store
        self._guard = guard
        self._reader = reader
        self._assigner = assigner

    def router(self) -> APIRouter:
        """The routes, with their OpenAPI."""
        router = APIRouter(route_class=DirectRoute, tags=["Routing"])
        shown = {"model": RoutingResponse, "headers": ETAG}
        router.add_api_route(
            "/routing",
            self.show,
            methods=["GET"],
            summary="Where requests go",
            operation_id="get_routing",
            responses={200: shown, **problems(401)},
        )
        router.add_api_route(
            "/routing",
            self.put,
            methods=["PUT"],
            summary="Send requests elsewhere, on all replicas",
            operation_id="put_routing",
            responses={200: shown, **problems(400, 401, 403, 409, 412, 413, 415, 422, 428, 503)},
            openapi_extra=request_body(RoutingPlan) | parameters(IF_MATCH_REQUIRED, AUTHOR),
        )
        router.add_api_route(
            "/routing/kill",
            self.kill,
            methods=["PUT"],
            summary="Emergency: all requests to one version, or no rewrites at all",
            operation_id="put_kill",
            responses={200: shown, **problems(400, 401, 403, 409, 413, 415, 422, 503)},
            openapi_extra=request_body(Kill) | parameters(AUTHOR),
        )
        router.add_api_route(
            "/routing/kill",
            self.revive,
            methods=["DELETE"],
            summary="End the emergency: requests go where /routing says",
            operation_id="delete_kill",
            responses={200: shown, **problems(401, 403, 409, 503)},
            openapi_extra=parameters(AUTHOR),
        )
        router.add_api_route(
            "/routing/kill/local",
            self.kill_here,
            methods=["PUT"],
            summary="Emergency without Redis: the same for this replica alone",
            operation_id="put_local_kill",
            responses={200: shown, **problems(400, 401, 403, 409, 413, 415, 422)},
            openapi_extra=request_body(Kill) | parameters(AUTHOR),
        )
        router.add_api_route(
            "/routing/kill/local",
            self.revive_here,
            methods=["DELETE"],
            summary="End the emergency of this replica alone",
            operation_id="delete_local_kill",
            responses={200: shown, **problems(401, 403)},
            openapi_extra=parameters(AUTHOR),
        )
        router.add_api_route(
            "/audit",
            self.audit,
            methods=["GET"],
            summary="Who changed what",
            operation_id="get_audit",
            responses={200: {"model": AuditResponse}, **problems(401, 403, 422, 503)},
            openapi_extra=parameters(*_AUDIT.parameters()),
        )
        return router

    async def show(self, request: Request) -> Response:
        """What is in force here. Changes are made from the ETag of this answer."""
        self._reader.check(request)
        return self._shown()

    async def put(self, request: Request) -> Response:
        """The whole plan anew, in force on all replicas within a second.

        ``If-Match`` says which plan the change was made from. The kill switch stays as it is.
        """
        author = self._guard.check(request)
        expected = expected_revision(request, required=True)
        plan = await read_json(request, RoutingPlan)

        def planned(current: Routing) -> Routing:
            self._check(list(_uses(plan, current)))
            return current.plan(plan)

        revision = await self._routing.update(
            planned, expected=expected, action="routing.put", author=author
        )
        return self._changed(request, "routing.put", revision)

    async def kill(self, request: Request) -> Response:
        """Goes before pins, weights and default until it is taken back; needs no ``If-Match``."""
        author = self._guard.check(request)
        kill = await read_json(request, Kill)
        self._check_kill(kill)
        try:
            revision = await self._routing.update(
                lambda current: current.killed(kill),
                action="routing.kill",
                author=author,
                reason=kill.reason,
            )
        except DocumentStoreUnavailable as error:
            raise DocumentStoreUnavailable(f"{error}; {_STOP_HERE}") from error
        return self._changed(request, "routing.kill", revision)

    async def revive(self, request: Request) -> Response:
        """Does nothing if the switch is not on."""
        author = self._guard.check(request)
        revision = await self._routing.update(
            lambda current: None if current.kill is None else current.killed(None),
            action="routing.revive",
            author=author,
        )
        return self._changed(request, "routing.revive", revision)

    async def kill_here(self, request: Request) -> Response:
        """Goes before everything, the switch of all replicas too; needs no Redis.

        It is in force until it is taken back here or this process ends. No other replica sees it.
        """
        author = self._guard.check(request)
        kill = await read_json(request, Kill)
        self._check_kill(kill)
        return await self._switched(request, kill, "routing.kill_local", author)

    async def revive_here(self, request: Request) -> Response:
        """Does nothing if the switch of this replica is not on."""
        author = self._guard.check(request)
        return await self._switched(request, None, "routing.revive_local", author)

    async def audit(self, request: Request) -> Response:
        """The last changes of all control documents, newest first."""
        self._guard.check(request)
        page = _AUDIT.page(request)
        # One more shows whether there is a next page.
        entries, after = page.of(await self._document_store.notes(min(page.end + 1, AUDIT_ENTRIES)))
        return json_response(
            {"entries": entries, "next_offset": after, "persistence": self._persistence()}
        )

    async def _switched(
        self, request: Request, kill: Kill | None, action: str, author: str
    ) -> Response:
        """Set the local kill switch; the response to its request."""
        before = self._assigner.local_kill
        if before == kill:
            return self._shown()
        self._assigner.kill_locally(kill)
        revision = self._routing.revision
        change = Change(
            document=self._routing.name,
            action=action,
            author=author,
            reason=None if kill is None else kill.reason,
            revision=revision,
            replaced=revision,
            before={"local_kill": _dumped(before)},
            after={"local_kill": _dumped(kill)},
            replica=socket.gethostname(),
        )
        # It is in force already and must not wait long: the store may be the reason for it.
        await note(self._document_store, change, within_s=_NOTE_S)
        return self._changed(request, action, revision)

    def _check_kill(self, kill: Kill) -> None:
        if kill.version is not None:
            self._check([_Use("version", kill.version, rises=True)])

    def _check(self, uses: Collection[_Use]) -> None:
        unknown = []
        for use in uses:
            try:
                self._versions.get(use.name)
            except UnknownVersion as error:
                unknown.append(FieldError(use.field, str(error)))
        if unknown:
            raise InvalidRequest(unknown)
        ready = self._versions.ready_names()
        for use in uses:
            if use.rises and use.name not in ready:
                raise VersionNotLoaded(
                    f"{use.field}: version {use.name} is not ready on this replica; "
                    f"POST /versions/{use.name}/load, and try again once GET /versions says ready"
                )

    def _changed(self, request: Request, change: str, revision: int) -> Response:
        context_of(request.scope).fields.update(change=change, revision=revision)
        return self._shown()

    def _shown(self) -> Response:
        content = {
            **self._routing.value.dump(),
            "local_kill": _dumped(self._assigner.local_kill),
            "revision": self._routing.revision,
            "persistence": self._persistence(),
        }
        return json_response(content, headers={"etag": entity_tag(self._routing.stored)})

    def _persistence(self) -> str:
        return "redis" if self._routing.durable else "process"


class _Use(NamedTuple):
    """A use of a version in a plan."""

    field: str
    name: str
    rises: bool
    """Whether it gets more requests than before."""


def _uses(plan: RoutingPlan, current: Routing) -> Iterator[_Use]:
    """The uses of versions in ``plan``, compared with ``current``."""
    yield _Use("default", plan.default, rises=plan.default != current.default)
    for name, share in plan.weights.items():
        yield _Use(f"weights.{name}", name, rises=share > current.weights.get(name, 0))
    if plan.shadow is not None:
        before = current.shadow
        same = before is not None and before.version == plan.shadow.version
        had = before.share if before is not None and same else 0.0
        yield _Use("shadow.version", plan.shadow.version, rises=plan.shadow.share > had)


def _dumped(kill: Kill | None) -> dict[str, Any] | None:
    return None if kill is None else kill.model_dump(mode="json")
