"""Reading a request: its declared type, its JSON, its deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.api.problems import from_validation
from service.deadline import Deadline
from service.errors import FieldError, InvalidRequest, UnsupportedMediaType

DEADLINE_HEADER = "x-request-deadline-ms"

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """How long a request may take.

    Attributes:
        default_ms: when the caller names no deadline.
        cap_ms: at most, whatever the caller names.
    """

    default_ms: int
    cap_ms: int

    def deadline(self, request: Request, body_ms: int | None, *, started: float) -> Deadline:
        """The earliest of the body's, the header's and the server's deadline.

        Args:
            request: may carry ``X-Request-Deadline-Ms``; 0 or less means that it has passed.
            body_ms: ``deadline_ms`` of the body.
            started: when the request came in (monotonic seconds).

        Raises:
            InvalidRequest: the header is no number.
        """
        named = [] if body_ms is None else [body_ms]
        header = request.headers.get(DEADLINE_HEADER)
        if header is not None:
            named.append(_milliseconds(header))
        return Deadline.after(min([self.cap_ms, *(named or [self.default_ms])]), since=started)


async def read_json(request: Request, model: type[_Model]) -> _Model:
    """The body as ``model``.

    Raises:
        UnsupportedMediaType: it is not declared as JSON.
        PayloadTooLarge: it is over the limit (raised by the middleware).
        InvalidJson, InvalidRequest: it is no JSON, or not of that model.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/json" and not declared.endswith("+json"):
        raise UnsupportedMediaType(
            "send the header 'content-type: application/json' "
            "(with curl: -H 'content-type: application/json')"
        )
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def _milliseconds(header: str) -> int:
    digits = header.strip()
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        raise InvalidRequest(
            [FieldError("header X-Request-Deadline-Ms", "must be a whole number of milliseconds")]
        )
    return max(0, sign * int(digits))
