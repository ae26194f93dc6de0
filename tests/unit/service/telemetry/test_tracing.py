from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError

from service.config.settings import Settings
from service.telemetry.tracing import MAX_QUEUE, Tracing, TracingMiddleware
from tests.support.engine import ScriptedEngine
from tests.support.redis_server import free_port
from tests.support.service import Serve, Service

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}


class Traces:
    """Services whose spans are kept in memory."""

    def __init__(self, serve: Serve, patch: pytest.MonkeyPatch) -> None:
        self._serve = serve
        self._patch = patch
        self.exporter: SpanExporter = InMemorySpanExporter()
        self.tracing: list[Tracing] = []

    async def service(self, engine: ScriptedEngine | None = None, **options: Any) -> Service:
        def inside(_: str, *, sample: float, release: str) -> Tracing:
            self.tracing.append(Tracing.through(self.exporter, sample=sample, release=release))
            return self.tracing[-1]

        self._patch.setattr("service.app.factory.Tracing.to_collector", inside)
        given = {"otlp_endpoint": "http://collector:4318", "trace_sample": 1.0} | options
        return await self._serve(engine, **given)

    def spans(self) -> dict[str, ReadableSpan]:
        """Those that have ended, by name; each name once."""
        assert isinstance(self.exporter, InMemorySpanExporter)
        self.tracing[-1]._provider.force_flush()
        found = self.exporter.get_finished_spans()
        names = [span.name for span in found]
        assert len(set(names)) == len(names), names
        return dict(zip(names, found, strict=True))


@pytest.fixture
def traces(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Traces:
    return Traces(serve, monkeypatch)


async def ask(service: Service, headers: dict[str, str], query: str = "steele stake") -> None:
    response = await service.client.post("/rewrite", json={"query": query}, headers=headers)
    assert response.status_code == 200, response.text


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


async def test_a_callers_trace_goes_on_through_all_stages(traces: Traces) -> None:
    service = await traces.service()
    await ask(service, SAMPLED | {"x-request-id": "r-1"})
    spans = traces.spans()
    request = spans.pop("POST /rewrite")
    assert trace_id(request) == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.kind is SpanKind.SERVER
    assert request.attributes is not None
    assert {
        "http.route": "/rewrite",
        "http.response.status_code": 200,
        "requery.request_id": "r-1",
        "requery.outcome": "ok",
        "requery.source": "engine",
        "requery.version": "test-1",
        "requery.rewrites": 2,
    }.items() <= request.attributes.items()
    assert list(spans) == ["route", "cache", "engine", "filter"]
    assert request.start_time is not None
    assert request.end_time is not None
    ends = request.start_time
    for span in spans.values():
        assert span.parent == request.context
        assert span.start_time is not None
        assert span.end_time is not None
        # Stages follow each other; the clocks that are compared tick apart.
        assert ends - 5_000_000 <= span.start_time <= span.end_time
        ends = span.end_time
    assert ends <= request.end_time + 5_000_000


async def test_a_hit_has_no_span_of_the_engine(traces: Traces) -> None:
    service = await traces.service()
    await ask(service, UNSAMPLED)
    await ask(service, SAMPLED)
    assert list(traces.spans()) == ["route", "cache", "filter", "POST /rewrite"]


@pytest.mark.parametrize(
    ("headers", "sample", "expected"),
    [(SAMPLED, 0.0, True), (UNSAMPLED, 1.0, False), ({}, 1.0, True), ({}, 0.0, False)],
)
async def test_the_parent_decides_on_sampling_and_else_the_share(
    traces: Traces, headers: dict[str, str], sample: float, expected: bool
) -> None:
    service = await traces.service(trace_sample=sample)
    await ask(service, headers)
    assert bool(traces.spans()) is expected


@pytest.mark.parametrize(
    ("mode", "shown"), [("hash", "requery.query_hash"), ("plain", "requery.query"), ("off", None)]
)
async def test_queries_are_shown_as_in_the_log(
    traces: Traces, mode: str, shown: str | None
) -> None:
    service = await traces.service(log_queries=mode)
    await ask(service, SAMPLED, "my secret need")
    texts = [
        f"{span.name} {dict(span.attributes or {})} {span.events}"
        for span in traces.spans().values()
    ]
    assert any("my secret need" in text for text in texts) is (mode == "plain")
    names = set(traces.spans()["POST /rewrite"].attributes or {})
    assert {name for name in names if "query" in name.partition(".")[2]} == {shown} - {None}


async def test_errors_are_told_apart_and_probes_leave_no_trace(traces: Traces) -> None:
    service = await traces.service(ScriptedEngine(tag=_broken))
    await service.client.get("/livez")
    await service.client.get("/metrics")
    await service.client.get("/nothing-here", headers=SAMPLED)
    bad = await service.client.post("/rewrite", json={}, headers=SAMPLED)
    assert bad.status_code == 422
    failed = await service.client.post(
        "/relevance", json={"pairs": [{"query": "a", "rewrite": "b"}]}, headers=SAMPLED
    )
    assert failed.status_code == 500
    spans = traces.spans()
    assert set(spans) == {"GET", "POST /rewrite", "POST /relevance"}
    assert spans["POST /rewrite"].status.status_code is StatusCode.UNSET
    assert spans["POST /relevance"].status.status_code is StatusCode.ERROR


def _broken(_query: str, _rewrite: str) -> float:
    raise RuntimeError("made up")


async def test_log_lines_carry_the_trace(
    traces: Traces, capsys: pytest.CaptureFixture[str]
) -> None:
    service = await traces.service()
    await ask(service, {})
    (span,) = [s for name, s in traces.spans().items() if name == "POST /rewrite"]
    assert trace_id(span) in capsys.readouterr().out


class Stuck(SpanExporter):
    """A collector that takes for ever."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.reached.set()
        self.released.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


async def test_a_collector_that_hangs_costs_spans_and_nothing_else(traces: Traces) -> None:
    exporter = traces.exporter = Stuck()
    service = await traces.service()
    tracing = traces.tracing[-1]
    for i in range(600):  # of four spans each and the request's own
        await ask(service, {}, f"stake {i % 3}")
    assert await asyncio.to_thread(exporter.reached.wait, 60)
    processor: Any = tracing._provider._active_span_processor._span_processors[0]
    assert len(processor._batch_processor._queue) <= MAX_QUEUE
    await tracing.close()  # returns, though the spans cannot be sent
    exporter.released.set()


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A loopback collector: its address, and path and body of what it was sent."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def layers(service: Service) -> dict[str, dict[str, Any]]:
    """Options of the layers around the application, by name of their class."""
    return {
        getattr(one.cls, "__name__", ""): dict(one.kwargs) for one in service.app.user_middleware
    }


async def test_a_real_exporter_sends_otlp_over_http(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with collector() as (url, got):
        service = await serve(otlp_endpoint=url, trace_sample=1.0)
        await ask(service, SAMPLED)
        tracing = layers(service)[TracingMiddleware.__name__]["tracing"]
        assert isinstance(tracing, Tracing)
        assert await asyncio.to_thread(tracing._provider.force_flush)
    (path, body), *_ = got
    assert path == "/v1/traces"
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {one.key: one.value.string_value for one in sent.resource.attributes}
    assert resource["service.name"] == "requery"
    assert resource["service.version"]
    assert resource["deployment.environment.name"] == "test"
    spans = [span for scope in sent.scope_spans for span in scope.spans]
    assert {span.name for span in spans} >= {"POST /rewrite", "engine"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}


async def test_requests_go_on_while_nobody_listens_there(serve: Serve) -> None:
    service = await serve(otlp_endpoint=f"http://127.0.0.1:{free_port()}", trace_sample=1.0)
    for _ in range(20):
        await ask(service, SAMPLED)


async def test_without_a_collector_there_is_no_layer(service: Service) -> None:
    assert layers(service)
    assert TracingMiddleware.__name__ not in layers(service)


def test_without_a_collector_nothing_that_traces_is_imported() -> None:
    program = (
        "import sys, service.app.factory, service.server.command;"
        # Its metrics are imported by redis-py, where they are installed.
        "tracing = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'opentelemetry.proto');"
        "sys.exit(any(name.startswith(tracing) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_library_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"requery-search\[otel\]"):
        Tracing.to_collector("http://a:4318", sample=1.0, release="1")


@pytest.mark.parametrize("value", ["collector:4318", "ftp://a", "http://"])
def test_an_endpoint_is_a_web_address(value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(otlp_endpoint=value)
