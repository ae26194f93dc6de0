"""The outermost ASGI layers: request context with access line, and the body limit."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.limits import EXEMPT
from service.api.metrics import ApiMetrics
from service.api.problems import internal_problem
from service.errors import PayloadTooLarge
from service.telemetry.request_context import RequestContext, attach, make_context

_log = structlog.get_logger(component="access")

_CLIENT_CLOSED = 499
"""Logged when the client disconnected first (as nginx does)."""
_QUIET = EXEMPT
"""Polled every few seconds: logged only on failures (503 is an answer)."""


class RequestContextMiddleware:
    """Attaches the context of each request, adds headers, counts it and logs one line.

    Args:
        app: the application inside.
        metrics: counts responses and requests in flight.
        log_requests: whether to log the access line.
    """

    def __init__(self, app: ASGIApp, *, metrics: ApiMetrics, log_requests: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = make_context(scope["headers"])
        attach(scope, context)
        ids = {"request_id": context.request_id}
        if context.trace_id is not None:
            ids["trace_id"] = context.trace_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # No route sets these by itself.
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", context.request_id.encode("ascii")),
                    (b"server-timing", server_timing(context)),
                ]
            await send(message)

        self._metrics.in_flight += 1
        # Log lines in this task and in tasks that it starts carry the ids.
        tokens = structlog.contextvars.bind_contextvars(**ids)
        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED
        except Exception:
            _log.exception("unhandled_error")
            if status:
                raise  # the response has started: only the server can abort it
            await internal_problem(context.request_id)(scope, receive, send_with_headers)
        finally:
            self._metrics.in_flight -= 1
            self._record(scope, context, status or _CLIENT_CLOSED)
            structlog.contextvars.reset_contextvars(**tokens)

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.responded(route=route, code=status)
        if not self._log_requests or (route in _QUIET and status in (200, 503)):
            return
        fields: Mapping[str, object] = context.fields
        if context.parent_id is not None:
            fields = {**fields, "parent_id": context.parent_id}
        _log.info(
            "request",
            method=scope["method"],
            route=route,
            code=status,
            ms=round(context.watch.elapsed() * 1000, 3),
            **fields,
        )


class BodyLimitMiddleware:
    """Rejects bodies over a limit, declared or not.

    The error is raised where the body is read, so that it is answered like any other.

    Args:
        app: the application inside.
        max_bytes: longest body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                declared = value
                break
        too_long = declared.isdigit() and int(declared[:20]) > self._max_bytes
        received = 0

        async def limited() -> Message:
            nonlocal received
            if too_long:
                raise self._refusal()
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._refusal()
            return message

        await self._app(scope, limited, send)

    def _refusal(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body may have at most {self._max_bytes} bytes; send less")


def server_timing(context: RequestContext) -> bytes:
    """The ``Server-Timing`` value: each stage and the total, in milliseconds."""
    watch = context.watch
    stages = [f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in watch.stages.items()]
    stages.append(f"total;dur={watch.elapsed() * 1000:.2f}")
    return ", ".join(stages).encode("ascii")
