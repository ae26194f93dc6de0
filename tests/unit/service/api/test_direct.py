"""The short way to a route ends where FastAPI's own would."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.api.direct import DirectRoute, direct_routes
from tests.support.service import Service


async def _answer(_request: Request) -> Response:
    return Response()


def ways(*routes: tuple[str, str], kind: type[APIRoute] = DirectRoute) -> set[tuple[str, str]]:
    router = APIRouter(route_class=kind)
    for method, path in routes:
        router.add_api_route(path, _answer, methods=[method], response_model=None)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    return set(direct_routes(app.routes))


def test_routes_without_parameters_are_found_by_method_and_path() -> None:
    assert ways(("POST", "/a"), ("GET", "/a"), ("GET", "/b/{id}")) == {
        ("POST", "/a"),
        ("GET", "/a"),
    }


def test_a_route_that_another_hides_has_no_short_way() -> None:
    assert ways(("GET", "/{any}"), ("GET", "/a"), ("POST", "/a")) == {("POST", "/a")}


def test_routes_of_fastapis_own_kind_are_left_to_it() -> None:
    assert ways(("GET", "/a"), kind=APIRoute) == set()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/rewrite", 405), ("POST", "/rewrite/", 404), ("POST", "/rewrites", 404),
        ("POST", "/rewrite", 422), ("POST", "/v1/rewrite", 422), ("GET", "/livez", 200),
    ],
)  # fmt: skip
async def test_what_has_no_short_way_is_answered_as_ever(
    service: Service, method: str, path: str, status: int
) -> None:
    content: Any = {} if method == "POST" else None
    response = await service.client.request(method, path, json=content)
    assert response.status_code == status
    assert response.headers["x-request-id"]
    assert "total;dur=" in response.headers["server-timing"]
    route = path if status in (200, 422) else "unmatched" if status != 405 else path
    count = await service.metric("requery_http_responses_total", route=route, code=str(status))
    assert count >= 1


async def test_a_path_under_a_root_is_fastapis(service: Service) -> None:
    seen: list[str] = []

    async def send(message: Any) -> None:
        seen.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": "/under/livez", "root_path": "/under",
        "headers": [], "query_string": b"", "http_version": "1.1", "client": None,
    }  # fmt: skip
    await service.app(scope, receive, send)
    assert seen == ["http.response.start", "http.response.body"]
    assert await service.metric("requery_http_responses_total", route="/livez", code="200") >= 1
