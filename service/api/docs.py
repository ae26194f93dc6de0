"""``/docs``: Swagger UI with all its files from this service, because it must work offline."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from service.api.console import PAGE_HEADERS
from service.api.direct import DirectRoute

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Requery: HTTP API</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<main id="api"></main>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """"use strict";
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null, // else another host would get the address of this one
});
"""
_TYPES = {
    "favicon.png": "image/png",
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}
"""Files of the package that carries Swagger UI."""
_HEADERS = {
    **PAGE_HEADERS,
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
}


def docs_router() -> APIRouter:
    """The routes; none of them is in the OpenAPI document, and none needs a key."""
    folder = Path(str(files("fastapi_offline"))) / "static"

    async def page(_request: Request) -> Response:
        return Response(_PAGE, headers=_HEADERS, media_type="text/html")

    async def start(_request: Request) -> Response:
        return Response(_START, headers=_HEADERS, media_type="text/javascript")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _TYPES:
            raise HTTPException(404)
        return FileResponse(folder / name, headers=_HEADERS, media_type=_TYPES[name])

    router = APIRouter(route_class=DirectRoute, include_in_schema=False)
    router.add_api_route("/docs", page, methods=["GET"])
    router.add_api_route("/docs/start.js", start, methods=["GET"])
    router.add_api_route("/docs/{name}", asset, methods=["GET"])
    return router
