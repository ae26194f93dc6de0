"""Metrics of HTTP requests and responses."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from service.telemetry.fast_metrics import FastCounter, FastCounters


class ApiMetrics:
    """Responses, and requests in flight.

    Args:
        registry: registers the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._responses = FastCounters(
            "requery_http_responses",
            "HTTP responses by route (as in the OpenAPI document) and status code",
            ["route", "code"],
            registry=registry,
        )
        self._responses_of: dict[tuple[str, int], FastCounter] = {}
        self.in_flight = 0
        """HTTP requests in flight."""
        Gauge(
            "requery_requests_in_flight", "HTTP requests in flight", registry=registry
        ).set_function(lambda: self.in_flight)

    def responded(self, *, route: str, code: int) -> None:
        """Count one response; ``route`` is a template, never a raw path."""
        counter = self._responses_of.get((route, code))
        if counter is None:
            counter = self._responses_of[route, code] = self._responses.labels(route, str(code))
        counter.inc()
