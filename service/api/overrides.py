"""``/overrides``: manual decisions of the relevance team, on all replicas."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.body import read_json
from service.api.conditions import entity_tag, expected_revision
from service.api.direct import DirectRoute
from service.api.operator_schemas import (
    AnyObject,
    NewOverride,
    OverrideInfo,
    OverridesRequest,
    OverridesResponse,
)
from service.api.paging import Page, Paging
from service.api.responses import NO_STORE, json_response
from service.api.schemas import (
    AUTHOR,
    ETAG,
    IF_MATCH,
    IF_MATCH_REQUIRED,
    parameter,
    parameters,
    problems,
    request_body,
    response_header,
)
from service.errors import UnknownOverride
from service.overrides.editor import OverrideEditor
from service.overrides.entries import ID, Entry, Source, read_entries, read_entry
from service.overrides.live import Overrides
from service.overrides.table import MAX_ENTRIES
from service.security.auth import Guard
from service.telemetry.request_context import context_of

_MAX_REASON_CHARS = 500
_PAGING = Paging(most=2 * MAX_ENTRIES, default=2 * MAX_ENTRIES)  # of the API, and of the file
_WHOLE = Page(_PAGING.most, 0)


class OverridesApi:
    """Routes of the relevance team; all of them need the admin key.

    Args:
        overrides: those in force.
        editor: changes them.
        guard: checks the key.
    """

    def __init__(self, *, overrides: Overrides, editor: OverrideEditor, guard: Guard) -> None:
        self._overrides = overrides
        self._editor = editor
        self._guard = guard

    def router(self) -> APIRouter:
        """The routes, with their OpenAPI."""
        router = APIRouter(route_class=DirectRoute, tags=["Overrides"])
        one = {"model": OverrideInfo, "headers": ETAG}
        new = {"model": OverrideInfo, "headers": ETAG | _LOCATION}
        listed = {"model": OverridesResponse, "headers": ETAG}
        router.add_api_route(
            "/overrides",
            self.show_all,
            methods=["GET"],
            summary="Overrides in force",
            operation_id="list_overrides",
            responses={200: listed, **problems(401, 403, 422)},
            openapi_extra=parameters(*_PAGING.parameters()),
        )
        router.add_api_route(
            "/overrides",
            self.add,
            methods=["POST"],
            status_code=201,
            summary="Put an override into force",
            operation_id="add_override",
            responses={201: new, **problems(400, 401, 403, 409, 413, 415, 422, 503)},
            openapi_extra=request_body(NewOverride) | parameters(AUTHOR),
        )
        router.add_api_route(
            "/overrides",
            self.replace_all,
            methods=["PUT"],
            summary="Replace all overrides but those of the file",
            operation_id="replace_overrides",
            responses={200: listed, **problems(400, 401, 403, 409, 412, 413, 415, 422, 428, 503)},
            openapi_extra=request_body(OverridesRequest) | parameters(IF_MATCH_REQUIRED, AUTHOR),
        )
        router.add_api_route(
            "/overrides/{id}",
            self.show,
            methods=["GET"],
            summary="One override",
            operation_id="get_override",
            responses={200: one, **problems(401, 403, 404)},
            openapi_extra=parameters(_ID),
        )
        router.add_api_route(
            "/overrides/{id}",
            self.put,
            methods=["PUT"],
            summary="Replace an override, or add it under this id",
            operation_id="put_override",
            responses={
                200: one,
                201: new,
                **problems(400, 401, 403, 409, 412, 413, 415, 422, 503),
            },
            openapi_extra=request_body(NewOverride) | parameters(_NEW_ID, IF_MATCH, AUTHOR),
        )
        router.add_api_route(
            "/overrides/{id}",
            self.remove,
            methods=["DELETE"],
            status_code=204,
            summary="Take an override out of force",
            operation_id="delete_override",
            responses={
                204: {"headers": ETAG},
                **problems(401, 403, 404, 409, 412, 422, 503),
            },
            openapi_extra=parameters(_ID, _REASON, IF_MATCH, AUTHOR),
        )
        return router

    async def show_all(self, request: Request) -> Response:
        """Those in force, first those of the API, then those of the file; all without a limit."""
        self._guard.check(request)
        return self._listed(_PAGING.page(request))

    async def show(self, request: Request) -> Response:
        """The override with this id."""
        self._guard.check(request)
        name = request.path_params["id"]
        for entry, source, hits in self._overrides.in_force():
            if entry.id == name:
                return self._one(entry, source=source, hits=hits)
        raise UnknownOverride(f"there is no override {name[:64]!a}; GET /overrides lists them")

    async def add(self, request: Request) -> Response:
        """In force on all replicas within a second; the answer names its id and place."""
        author = self._guard.check(request)
        draft = read_entry((await read_json(request, AnyObject)).root)
        entry = await self._editor.add(draft, author=author)
        _note(request, "overrides.add", entry)
        return self._one(entry, code=201)

    async def put(self, request: Request) -> Response:
        """The same, under an id of the caller's choice; what was there under it is replaced."""
        author = self._guard.check(request)
        draft = read_entry((await read_json(request, AnyObject)).root)
        entry, new = await self._editor.put(
            request.path_params["id"], draft, author=author, expected=expected_revision(request)
        )
        _note(request, "overrides.put", entry)
        return self._one(entry, code=201 if new else 200)

    async def remove(self, request: Request) -> Response:
        """Out of force on all replicas within a second."""
        author = self._guard.check(request)
        await self._editor.remove(
            request.path_params["id"],
            author=author,
            reason=request.query_params.get("reason", "")[:_MAX_REASON_CHARS] or None,
            expected=expected_revision(request),
        )
        context_of(request.scope).fields.update(change="overrides.delete")
        return Response(
            status_code=204, headers={"etag": entity_tag(self._editor.revision), **NO_STORE}
        )

    async def replace_all(self, request: Request) -> Response:
        """Exactly these from now on. ``If-Match`` says which list the change was made from."""
        author = self._guard.check(request)
        expected = expected_revision(request, required=True)
        body = await read_json(request, OverridesRequest)
        drafts = read_entries(body.overrides, most=MAX_ENTRIES)
        await self._editor.replace_all(drafts, author=author, reason=body.reason, expected=expected)
        context_of(request.scope).fields.update(change="overrides.replace", overrides=len(drafts))
        return self._listed()

    def _listed(self, page: Page = _WHOLE) -> Response:
        in_force = list(self._overrides.in_force())
        shown, after = page.of(in_force)
        content = {
            "overrides": [_shown(entry, source, hits) for entry, source, hits in shown],
            "total": len(in_force),
            "next_offset": after,
            "revision": self._editor.revision,
            "persistence": "redis" if self._editor.durable else "process",
            "file_problem": self._overrides.file_problem,
        }
        return json_response(content, 200, {"etag": entity_tag(self._editor.revision)})

    def _one(
        self, entry: Entry, *, code: int = 200, source: Source = "api", hits: int = 0
    ) -> Response:
        headers = {"etag": entity_tag(self._editor.revision)}
        if code == 201:
            headers["location"] = f"/overrides/{entry.id}"
        return json_response(_shown(entry, source, hits), code, headers)


_ID = parameter("path", "id", "Of the override.")
_NEW_ID = parameter("path", "id", "Of the override; any that suits.", pattern=f"^{ID}$")
_REASON = parameter(
    "query", "reason", f"For the audit trail; cut after {_MAX_REASON_CHARS} characters."
)
_LOCATION = response_header("Location", "Where the override is.")


def _note(request: Request, change: str, entry: Entry) -> None:
    context_of(request.scope).fields.update(change=change, kind=entry.kind)


def _shown(entry: Entry, source: Source, hits: int) -> dict[str, Any]:
    return {**entry.model_dump(), "source": source, "hits": hits}
