"""The console at ``/``: static files of the package, read once and served from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.direct import DirectRoute

FOLDER = Path(__file__).parents[1] / "console"
_INDEX = "index.html"
_PREFIX = "/console/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types of the files; a machine's own table may differ."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Browsers that support this never parse text from a script as HTML.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
PAGE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # With "no-referrer", some browsers send "Origin: null" from our own page.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    # Revalidate each time: a new release must not meet an old script.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


class Console:
    """Routes of the console; none of them is in the OpenAPI document, and none needs a key.

    The page holds nothing: what it shows comes from the other routes, with the key that they want.

    Args:
        folder: where the files are; read here, so that no request names a path of the disk.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _file(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES
        }

        self._index = self._files.pop(_INDEX)
        self.paths = frozenset({"/"} | {_PREFIX + name for name in self._files})
        """Paths of all files, as they are asked for."""

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(route_class=DirectRoute, include_in_schema=False)
        router.add_api_route("/", self.index, methods=["GET", "HEAD"])
        router.add_api_route(_PREFIX + "{name:path}", self.asset, methods=["GET", "HEAD"])
        return router

    async def index(self, request: Request) -> Response:
        """The page."""
        return _answer(request, self._index)

    async def asset(self, request: Request) -> Response:
        """A style sheet, module or picture of the page."""
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return _answer(request, file)


def _answer(request: Request, file: _File) -> Response:
    if file.headers["etag"] in _tags(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)


def _file(path: Path) -> _File:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return _File(
        content, {**PAGE_HEADERS, "content-type": _TYPES[path.suffix], "etag": f'"{digest}"'}
    )


def _tags(if_none_match: str) -> set[str]:
    """Entity tags of ``If-None-Match``; weak ones count, as RFC 9110 has it for this header."""
    return {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
