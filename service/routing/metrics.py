"""Metrics of routing, exposure records and shadow traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.routing.document import Routing
from service.telemetry.fast_metrics import LATENCY_BUCKETS_S

SHADOW_RESULTS = (
    "compared", "dropped_busy", "dropped_full", "broken_off", "timeout", "failed",
)  # fmt: skip
"""Results of a request that was sampled for shadow traffic."""


class RoutingMetrics:
    """Shares and the kill switch that are in force in this process.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kill = Gauge(
            "requery_kill", "1 while the kill switch of all replicas is on", registry=registry
        )
        self._share = Gauge(
            "requery_routing_share",
            "Share of the units assigned to each version; without weights 1 for the default",
            ["version"],
            registry=registry,
        )
        self._shadow = Gauge(
            "requery_routing_shadow_share",
            "Share of the requests that a candidate version answers in the background",
            ["version"],
            registry=registry,
        )

    def show(self, plan: Routing) -> None:
        """Show this plan, and only the versions that it names."""
        self._kill.set(plan.kill is not None)
        self._share.clear()
        for name, share in (plan.weights or {plan.default: 1.0}).items():
            self._share.labels(name).set(share)
        self._shadow.clear()
        if plan.shadow is not None:
            self._shadow.labels(plan.shadow.version).set(plan.shadow.share)


class ExposureMetrics:
    """Results of exposure records.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        records = Counter(
            "requery_exposures",
            "Exposure records: written, dropped (queue full), failed (given up)",
            ["result"],
            registry=registry,
        )
        self.written, self.dropped, self.failed = (
            records.labels(result) for result in ("written", "dropped", "failed")
        )
        self._queued = Gauge(
            "requery_exposures_queued", "Exposure records not yet written", registry=registry
        )

    def watch(self, queued: Callable[[], int]) -> None:
        """Read at every scrape how many records are queued."""
        self._queued.set_function(queued)


class Comparison(NamedTuple):
    """Two sets of rewrites of one query."""

    served: int
    candidate: int
    common: int

    @classmethod
    def of(cls, served: Sequence[str], candidate: Sequence[str]) -> Comparison:
        """Compare the texts."""
        left, right = set(served), set(candidate)
        return cls(len(left), len(right), len(left & right))

    @property
    def overlap(self) -> float:
        """Rewrites in common as a share of those of either side; 1 if neither has any."""
        union = self.served + self.candidate - self.common
        return self.common / union if union else 1.0


class ShadowMetrics:
    """Results of shadow traffic, and how the candidate compares.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._results = Counter(
            "requery_shadow",
            "Requests sampled for a candidate version by result",
            ["version", "result"],
            registry=registry,
        )
        self._rewrites = Counter(
            "requery_shadow_rewrites",
            "Accepted rewrites of compared requests: served, from the candidate, in common",
            ["version", "side"],
            registry=registry,
        )
        self._overlap = Histogram(
            "requery_shadow_overlap",
            "Rewrites in common as a share of those that either version gave",
            ["version"],
            buckets=tuple(i / 10 for i in range(11)),
            registry=registry,
        )
        self._seconds = Histogram(
            "requery_shadow_duration_seconds",
            "Time that the candidate took for a compared request",
            ["version"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )

    def count(self, version: str, result: str) -> None:
        """Count one of :data:`SHADOW_RESULTS`."""
        self._results.labels(version, result).inc()

    def compared(self, version: str, comparison: Comparison, *, seconds: float) -> None:
        """Record a comparison."""
        self.count(version, "compared")
        for side, n in (
            ("served", comparison.served),
            ("candidate", comparison.candidate),
            ("common", comparison.common),
        ):
            self._rewrites.labels(version, side).inc(n)
        self._overlap.labels(version).observe(comparison.overlap)
        self._seconds.labels(version).observe(seconds)
