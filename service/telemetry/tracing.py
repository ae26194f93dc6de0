"""OpenTelemetry traces: one span for each request, and one for each stage of its pipeline.

Without ``REQUERY_OTLP_ENDPOINT`` nothing of OpenTelemetry is imported and requests pass no layer of
it. A thread sends spans from a bounded queue, so a slow or absent collector costs spans only.

The client's ``traceparent`` (W3C Trace Context) and its sampling decision are kept. The layers
inside see this request's span as the parent, so that log lines carry the trace id. The stopwatch of
``Server-Timing`` times the stages. Attributes are the fields of the access line, so a query is
hashed, plain or absent as in the log.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.request_context import RequestContext, find_context
from service.telemetry.threads import in_daemon_thread

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_log = structlog.get_logger(component="tracing")

STAGES = {
    "prepare": "route",
    "cache": "cache",
    "admit": "queue",
    "generate": "engine",
    "filter": "filter",
}
"""Names of spans by stage; other stages keep their names."""
MAX_QUEUE = 2048
"""Capacity of the queue; more spans are dropped."""
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_S = 2.0
"""Longest wait for the last spans at the end."""
_QUIET = ("/livez", "/readyz", "/metrics")
"""Polled every few seconds: not traced."""


class Tracing:
    """Creates and sends spans.

    Args:
        provider: of spans; see :meth:`to_collector`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("requery")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str, *, sample: float, release: str) -> Self:
        """Tracing by OTLP over HTTP.

        The resource, headers and certificates follow the standard ``OTEL_*`` variables.

        Args:
            endpoint: base URL of the collector; ``/v1/traces`` is appended.
            sample: share in [0, 1] of requests to trace where the client has not decided.
            release: version of this program.

        Raises:
            ValueError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ValueError(
                "REQUERY_OTLP_ENDPOINT needs OpenTelemetry: pip install 'requery-search[otel]'"
            ) from None
        exporter = OTLPSpanExporter(
            endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S
        )
        return cls.through(exporter, sample=sample, release=release)

    @classmethod
    def through(cls, exporter: SpanExporter, *, sample: float, release: str) -> Self:
        """Tracing by an exporter, in batches."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before these.
            resource=Resource.create({"service.version": release}).merge(_named()),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUE))
        return cls(provider)

    def begin(self, scope: Scope) -> Span:
        """Start the span of a request, a child of the client's if there is one."""
        from opentelemetry.trace import SpanKind

        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        return self._tracer.start_span(
            scope["method"],
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"]},
        )

    def headers_of(self, span: Span) -> list[tuple[bytes, bytes]]:
        """Headers with ``span`` as the parent."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return [(name.encode(), value.encode("latin-1")) for name, value in carrier.items()]

    def end(self, span: Span, scope: Scope, context: RequestContext | None, status: int) -> None:
        """Record status, fields and stages of the request, and end its span."""
        if span.is_recording():
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                from opentelemetry.trace import StatusCode

                span.set_status(StatusCode.ERROR)
            if context is not None:
                span.set_attribute("requery.request_id", context.request_id)
                span.set_attributes(_attributes(context.fields))
                self._stages(span, context)
        span.end()

    def _stages(self, parent: Span, context: RequestContext) -> None:
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(parent)
        # Spans use the wall clock; the stopwatch uses the monotonic clock.
        at = time.time_ns() - round((time.monotonic() - context.watch.started) * 1e9)
        for stage, seconds in context.watch.stages.items():
            span = self._tracer.start_span(STAGES.get(stage, stage), within, start_time=at)
            at += round(seconds * 1e9)
            span.end(at)

    async def close(self) -> None:
        """Send the remaining spans, within two seconds."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await in_daemon_thread(self._provider.shutdown, name="last-spans")
        except TimeoutError:
            _log.warning("spans_not_sent", seconds=_CLOSE_S)


@asynccontextmanager
async def traced(tracing: Tracing | None) -> AsyncIterator[None]:
    """Send the last spans at the end, if tracing is on."""
    try:
        yield
    finally:
        if tracing is not None:
            await tracing.close()


class TracingMiddleware:
    """The outermost layer while tracing is on.

    Args:
        app: the application inside.
        tracing: creates the spans.
    """

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        span = self._tracing.begin(scope)
        # The layers inside write their findings to the scope that they are given.
        inner = {**scope, "headers": [*_others(scope["headers"]), *self._tracing.headers_of(span)]}
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(inner, receive, watched)
        finally:
            self._tracing.end(span, inner, find_context(inner), status or 499)


def _others(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [one for one in headers if one[0] not in (b"traceparent", b"tracestate")]


def _named() -> Any:
    """The service name, unless the environment sets one."""
    from opentelemetry.sdk.resources import Resource

    given = os.environ.get("OTEL_SERVICE_NAME", "")
    stated = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource({} if given or stated else {"service.name": "requery"})


def _attributes(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Log fields as attributes; values that are not plain become text."""
    return {
        f"requery.{name}": value if isinstance(value, str | int | float) else str(value)
        for name, value in fields.items()
    }
