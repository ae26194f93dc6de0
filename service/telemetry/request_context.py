"""What the edge knows about one HTTP request: its ids, its clock, what to log about it."""

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
"""Ids have to differ, and need not be secret: a system call for each would be waste."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:@+/=-]{0,127}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


@dataclass(slots=True)
class RequestContext:
    """One request. Handlers add log fields; the middleware writes them with the access line."""

    request_id: str
    trace_id: str | None = None
    parent_id: str | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    fields: dict[str, Any] = field(default_factory=dict)


def make_context(headers: Iterable[tuple[bytes, bytes]]) -> RequestContext:
    """The context for a request with these (lower case) headers.

    ``X-Request-ID`` is kept if it is sane, else one is made. ``traceparent`` is read as W3C Trace
    Context says: an invalid one is ignored.
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
    """Let :func:`context_of` find the context."""
    scope[_KEY] = context


def find_context(scope: Scope) -> RequestContext | None:
    """The context, if the middleware came to attach one."""
    return scope.get(_KEY)


def context_of(scope: Scope) -> RequestContext:
    """The context that the middleware attached."""
    context = scope[_KEY]
    assert isinstance(context, RequestContext)  # noqa: S101 - for the type checker
    return context
