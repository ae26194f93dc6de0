"""OpenTelemetry traces: one span for each request, and one for each stage of its pipeline.

Off unless ``REQUERY_OTLP_ENDPOINT`` is set: then nothing that traces is imported, and requests pass
no layer of it. Spans go out in a thread of their own, from a queue that drops what does not
fit: a collector that is slow or gone costs spans and nothing else.

A caller's ``traceparent`` (W3C Trace Context) is continued, and its decision to sample is kept. The
layer inside sees this request's own span as its parent, so log lines carry the trace they belong
to. Stages are told from the stopwatch that ``Server-Timing`` is made from: they follow each other
without a gap. Attributes are the fields of the access line, so a query appears as it does in the
log: hashed, plain or not at all.
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
"""Name of a stage's span by its name on the stopwatch; others keep theirs."""
MAX_QUEUE = 2048
"""Spans that wait to be sent; more are dropped."""
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_S = 2.0
"""Longest that stopping waits for the last spans."""
_QUIET = ("/livez", "/readyz", "/metrics")
"""Asked every few seconds by machines: no traces of them."""


class Tracing:
    """What makes and sends spans.

    Args:
        provider: makes them; see :meth:`to_collector`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("requery")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str, *, sample: float, release: str) -> Self:
        """Traces that are sent by OTLP over HTTP.

        The resource, headers and certificates follow the standard ``OTEL_*`` variables.

        Args:
            endpoint: base address of the collector; ``/v1/traces`` is put after it.
            sample: share of the requests without a caller's decision that are traced, in [0, 1].
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
        """Traces that go to an exporter, in batches."""
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
        """The span of a request, a child of the caller's if there is one."""
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
        """Headers that say that ``span`` is the parent."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return [(name.encode(), value.encode("latin-1")) for name, value in carrier.items()]

    def end(self, span: Span, scope: Scope, context: RequestContext | None, status: int) -> None:
        """Tell what became of the request, stage by stage, and send it off."""
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
        # From the monotonic clock, which the stopwatch reads, to that of the spans.
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
    """Send the last spans at the end, if there are traces at all."""
    try:
        yield
    finally:
        if tracing is not None:
            await tracing.close()


class TracingMiddleware:
    """The outermost layer while traces are on.

    Args:
        app: the application inside.
        tracing: makes the spans.
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
    """The resource's name, unless the environment has one."""
    from opentelemetry.sdk.resources import Resource

    given = os.environ.get("OTEL_SERVICE_NAME", "")
    stated = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource({} if given or stated else {"service.name": "requery"})


def _attributes(fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Log fields as attributes: what is no plain value is written as text."""
    return {
        f"requery.{name}": value if isinstance(value, str | int | float) else str(value)
        for name, value in fields.items()
    }
