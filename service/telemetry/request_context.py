"""The context of one HTTP request: ids, stopwatch and log fields."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from service.telemetry.stopwatch import Stopwatch

_KEY = "requery.context"
_draw = random.Random(random.SystemRandom().getrandbits(256)).getrandbits
"""Ids must differ but need not be secret, so they take no system call."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:@+/=-]{0,127}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


@dataclass(slots=True)
class RequestContext:
    """One request. Routes add log fields; the middleware logs them with the access line."""

    request_id: str
    trace_id: str | None = None
    parent_id: str | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    fields: dict[str, Any] = field(default_factory=dict)


def make_context(headers: Iterable[tuple[bytes, bytes]]) -> RequestContext:
    """The context of a request with these (lower case) headers.

    A valid ``X-Request-ID`` is kept, otherwise a new one is drawn. An invalid ``traceparent`` (W3C
    Trace Context) is ignored.
    """
    request_id: str | None = None
    trace_id = parent_id = None
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value.decode("ascii")
        elif name == b"traceparent" and (match := _TRACEPARENT.fullmatch(value)):
            trace, parent = match[1].decode("ascii"), match[2].decode("ascii")
            if int(trace, 16) and int(parent, 16):
                trace_id, parent_id = trace, parent
    return RequestContext(request_id or f"{_draw(128):032x}", trace_id, parent_id)


def attach(scope: Scope, context: RequestContext) -> None:
    """Attach the context to the scope."""
    scope[_KEY] = context


def find_context(scope: Scope) -> RequestContext | None:
    """The attached context, if any."""
    return scope.get(_KEY)


def context_of(scope: Scope) -> RequestContext:
    """The attached context."""
    context = scope[_KEY]
    assert isinstance(context, RequestContext)  # noqa: S101 - for the type checker
    return context
