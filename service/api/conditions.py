"""Conditional requests (RFC 9110): revisions as entity tags."""

from __future__ import annotations

import re

from starlette.requests import Request

from service.errors import FieldError, InvalidRequest, PreconditionRequired

_TAG = re.compile(r'"(\d{1,18})"')


def entity_tag(revision: int) -> str:
    """The ``ETag`` of a revision."""
    return f'"{revision}"'


def expected_revision(request: Request, *, required: bool = False) -> int | None:
    """The revision in ``If-Match``; ``None`` for ``*`` or without the header.

    Raises:
        PreconditionRequired: the required header is missing.
        InvalidRequest: the header is not one entity tag.
    """
    given = request.headers.get("if-match")
    if given is None:
        if required:
            raise PreconditionRequired(
                "send If-Match with the ETag of what the change was made from, or 'If-Match: *' "
                "to replace whatever there is"
            )
        return None
    given = given.strip()
    if given == "*":
        return None
    match = _TAG.fullmatch(given)
    if match is None:
        raise InvalidRequest(
            [FieldError("header If-Match", 'must be one entity tag as GET gave it, as in "12"')]
        )
    return int(match[1])
