"""Reads a request: media type, JSON body and deadline."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from service.api.problems import from_validation
from service.errors import FieldError, InvalidRequest, UnsupportedMediaType
from service.resilience.deadline import Deadline

DEADLINE_HEADER = "x-request-deadline-ms"
_DEADLINE_HEADER = DEADLINE_HEADER.encode()

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""Any escape of JSON; ``half`` is a surrogate without its other half."""

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """The time that a request may take.

    Attributes:
        default_ms: without a deadline in the request.
        cap_ms: upper bound.
    """

    default_ms: int
    cap_ms: int

    def deadline(self, request: Request, body_ms: int | None, *, started: float) -> Deadline:
        """The earliest of the body's, the header's and the server's deadline.

        Args:
            request: may have ``X-Request-Deadline-Ms``; 0 or less means that it has passed.
            body_ms: ``deadline_ms`` of the body.
            started: when the request arrived (monotonic seconds).

        Raises:
            InvalidRequest: the header is not a number.
        """
        header = header_of(request.scope, _DEADLINE_HEADER)
        if header is not None:
            stated = _milliseconds(header)
            body_ms = stated if body_ms is None else min(body_ms, stated)
        named = self.default_ms if body_ms is None else body_ms
        return Deadline.after(min(self.cap_ms, named), since=started)


async def read_json(request: Request, model: type[_Model]) -> _Model:
    """The body as ``model``; half of a surrogate pair reads as a space.

    JavaScript writes such a half if it cuts a text within an emoji. In a query, it is a space in
    any case, like an unassigned character.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        PayloadTooLarge: the body exceeds the limit (raised by the middleware).
        InvalidJson, InvalidRequest: the body is not JSON, or does not fit the model.
    """
    stated = header_of(request.scope, b"content-type") or ""
    if stated != "application/json" and not _is_json(stated):
        raise UnsupportedMediaType(
            "send the header 'content-type: application/json' "
            "(with curl: -H 'content-type: application/json')"
        )
    body = await _body(request)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        whole = _ESCAPE.sub(lambda found: b" " if found["half"] else found[0], body)
        if whole == body:
            raise from_validation(error) from None
    try:
        return model.model_validate_json(whole)
    except ValidationError as error:
        raise from_validation(error) from None


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first header of this (lower case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def _is_json(content_type: str) -> bool:
    declared = content_type.partition(";")[0].strip().lower()
    return declared == "application/json" or declared.endswith("+json")


async def _body(request: Request) -> bytes:
    """The body.

    Raises:
        ClientDisconnect: the client disconnected first.
    """
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _milliseconds(header: str) -> int:
    digits = header.strip()
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        raise InvalidRequest(
            [FieldError("header X-Request-Deadline-Ms", "must be a whole number of milliseconds")]
        )
    return max(0, sign * int(digits))
