"""Errors on the wire: ``application/problem+json`` (RFC 9457), never a stack trace."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.errors import (
    TYPE_PREFIX,
    FieldError,
    InvalidJson,
    InvalidRequest,
    RequeryError,
)
from service.telemetry.request_context import context_of

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 20
_MAX_FIELD_CHARS = 80

_ADVICE = {
    404: "there is nothing at this path; GET /openapi.json lists what there is",
    405: "this path does not take that method; the Allow header lists those that it takes",
}


def content(error: RequeryError, request_id: str | None = None) -> dict[str, Any]:
    """``error`` as a problem object."""
    body = _body(error.slug, error.title, error.status, _shown(str(error)), request_id)
    if isinstance(error, InvalidRequest):
        body["errors"] = [
            {"field": _shown(e.field), "detail": _shown(e.detail)} for e in error.errors
        ]
    return body


def problem(error: RequeryError, request_id: str | None = None) -> Response:
    """The response for ``error``."""
    return _response(content(error, request_id), dict(error.headers))


def internal_problem(request_id: str | None) -> Response:
    """The response for an unexpected error; the log has the details."""
    return problem(
        RequeryError("the server failed on this request; its log has the details"), request_id
    )


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem."""
    app.add_exception_handler(RequeryError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def answer_to(request: Request, error: Exception) -> Response:
    """The problem for an error that a route raised.

    Raises:
        Exception: ``error``, if it is neither a RequeryError nor an HTTPException.
    """
    if isinstance(error, HTTPException):
        return await _on_http_error(request, error)
    return await _on_error(request, error)


def from_validation(error: ValidationError) -> RequeryError:
    """The error for a body that a schema rejects."""
    found = error.errors(include_url=False, include_input=False)
    if found and found[0]["type"] == "json_invalid":
        reason = str(found[0].get("ctx", {}).get("error", "not JSON"))
        return InvalidJson(f"send one JSON object in UTF-8: {printable(reason)}")
    return InvalidRequest(
        [
            FieldError(_field(one["loc"]), _advice(one["type"], one["msg"]))
            for one in found[:_MAX_ERRORS]
        ]
    )


def printable(text: str, *, limit: int = 200) -> str:
    """``text`` as ASCII without control characters, cut to ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return ascii(cut)[1:-1]


def _shown(text: str) -> str:
    """``text``, escaped if it is not printable."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _field(location: tuple[int | str, ...]) -> str:
    path = ".".join(str(part) for part in location)
    return printable(path, limit=_MAX_FIELD_CHARS) if path else "body"


def _advice(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "is not a field of this request; remove it or check its spelling"
        case "missing":
            return "is required"
        case "model_type" | "model_attributes_type":
            return "must be a JSON object"
    return printable(message)


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequeryError):
        raise error
    context = context_of(request.scope)
    context.fields["problem"] = error.slug
    return problem(error, context.request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    body = _body(
        status.phrase.lower().replace(" ", "-"),
        status.phrase,
        status.value,
        _ADVICE.get(status.value, str(error.detail)),
        context_of(request.scope).request_id,
    )
    return _response(body, dict(error.headers or {}))


def _body(
    slug: str, title: str, status: int, detail: str, request_id: str | None
) -> dict[str, Any]:
    return {
        "type": TYPE_PREFIX + slug,
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }


def _response(body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(
        orjson.dumps(body),
        status_code=body["status"],
        headers={**headers, "cache-control": "no-store"},
        media_type=MEDIA_TYPE,
    )
