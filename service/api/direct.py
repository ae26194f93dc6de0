"""Direct dispatch: from a request to its route in one look-up by method and path.

FastAPI tries its routes one by one and opens stacks for dependencies and files, which costs as much
as a cache hit. Routes with parameters, and everything else, go on to FastAPI.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.limits import EXEMPT
from service.api.problems import answer_to, printable
from service.errors import FieldError, InvalidRequest, RequeryError

_UNKNOWN = "is not a parameter of this request; remove it or check its spelling"
_MAX_ERRORS = 20


class DirectRoute(APIRoute):
    """A documented route without FastAPI's dependency injection and response validation.

    Its endpoint takes the request and returns a response. An operation of the API has a tag, and
    takes no query parameters but those that it documents; probes and pages take any.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint, after a check of the query string."""

        async def handle(request: Request) -> Response:
            self.check_query(request)
            response: Response = await self.endpoint(request)
            return response

        return handle

    def check_query(self, request: Request) -> None:
        """Raise InvalidRequest if the query string names an unknown parameter."""
        if not request.scope["query_string"] or not self.tags or self.path in EXEMPT:
            return
        described = (self.openapi_extra or {}).get("parameters", ())
        known = {one["name"] for one in described if one["in"] == "query"}
        unknown = [name for name in request.query_params if name not in known]
        if unknown:
            raise InvalidRequest(
                [
                    FieldError(f"query {printable(name, limit=60)}", _UNKNOWN)
                    for name in unknown[:_MAX_ERRORS]
                ]
            )


class DirectMiddleware:
    """Calls a :class:`DirectRoute` without parameters; the innermost layer.

    ``HEAD`` is answered as ``GET``.

    Args:
        app: FastAPI, for all other requests.
        routes: all routes in FastAPI's order.
    """

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = direct_routes(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # The server sends the headers alone, because its own scope keeps the method.
            asked, scope = scope, {**scope, "method": "GET"}
            try:
                await self._dispatch(scope, receive, send)
            finally:
                asked["route"] = scope.get("route")  # for the access log
        else:
            await self._dispatch(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http" and not scope.get("root_path"):
            route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, {}
        request = Request(scope, receive, send)
        try:
            route.check_query(request)
            response = await route.endpoint(request)
        except (RequeryError, HTTPException) as error:
            response = await answer_to(request, error)
        await response(scope, receive, send)


def direct_routes(routes: Sequence[BaseRoute]) -> dict[tuple[str, str], DirectRoute]:
    """Routes by method and path that FastAPI would choose, too."""
    found: dict[tuple[str, str], DirectRoute] = {}
    for route in routes:
        if not isinstance(route, DirectRoute) or route.param_convertors:
            continue
        for method in route.methods or ():
            scope = {"type": "http", "method": method, "path": route.path, "root_path": ""}
            first = next(one for one in routes if one.matches(scope)[0] is Match.FULL)
            if first is route:
                found[method, route.path] = route
    return found
