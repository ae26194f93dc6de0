"""Metrics of the HTTP server, outside the application."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.errors import (
    HeadersTooLarge,
    MalformedRequest,
    PayloadTooLarge,
    RequeryError,
    RequestTimeout,
    TooManyConnections,
)


class HttpMetrics:
    """Connections, and requests that the server rejects before the application.

    Args:
        registry: registers the metrics; default: a new one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._refused = Counter(
            "requery_http_refusals",
            "Requests and connections rejected by the server before the application",
            ["reason"],
            registry=self.registry,
        )
        self._connections = Gauge(
            "requery_http_connections", "Open connections", registry=self.registry
        )
        for error in (
            HeadersTooLarge, MalformedRequest, PayloadTooLarge, RequestTimeout, TooManyConnections,
        ):  # fmt: skip
            self._refused.labels(error.slug)

    def watch(self, connections: Callable[[], int]) -> None:
        """Read the number of open connections at every scrape."""
        self._connections.set_function(connections)

    def refused(self, error: RequeryError) -> None:
        """Count a rejection."""
        self._refused.labels(error.slug).inc()
