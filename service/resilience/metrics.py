"""Metrics of admission control and of circuit breakers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

State = Literal["closed", "open", "half_open"]
"""Of a circuit breaker."""
STATES: tuple[State, ...] = get_args(State)


class AdmissionMetrics:
    """Limits of all gates, their use, and rejected work.

    Args:
        registry: registers the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._limit = Gauge(
            "requery_admission_limit",
            "Candidates that may be under way with the version's engine, by its measured speed",
            ["version"],
            registry=registry,
        )
        self._in_use = Gauge(
            "requery_admission_in_use",
            "Candidates under way with the version's engine",
            ["version"],
            registry=registry,
        )
        self._waiting = Gauge(
            "requery_admission_waiting",
            "Generations in line for the version's engine",
            ["version"],
            registry=registry,
        )
        self._waited = Histogram(
            "requery_admission_waited_seconds",
            "Time in line for the engine, of generations that were admitted from it or left it",
            ["version", "outcome"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=registry,
        )
        self._shed = Counter(
            "requery_shed",
            "Work rejected because the engine was full, by kind",
            ["version", "kind"],
            registry=registry,
        )
        self._evicted = Counter(
            "requery_generations_evicted",
            "Generations that no request waited for, stopped because their capacity was needed",
            ["version"],
            registry=registry,
        )
        self._disconnects = Counter(
            "requery_hangups",
            "Clients that disconnected while they waited for the engine",
            ["version"],
            registry=registry,
        )

    def watch(
        self,
        version: str,
        *,
        limit: Callable[[], float],
        in_use: Callable[[], int],
        waiting: Callable[[], int],
        kinds: Iterable[str],
    ) -> None:
        """Read limit and use at every scrape; show all kinds of work with zeros."""
        self._limit.labels(version).set_function(limit)
        self._in_use.labels(version).set_function(in_use)
        self._waiting.labels(version).set_function(waiting)
        for kind in kinds:
            self._shed.labels(version, kind)
        for outcome in ("admitted", "left"):
            self._waited.labels(version, outcome)
        self._evicted.labels(version)
        self._disconnects.labels(version)

    def shed(self, version: str, kind: str) -> None:
        """Count rejected work."""
        self._shed.labels(version, kind).inc()

    def waited(self, version: str, seconds: float, *, admitted: bool) -> None:
        """Observe a generation that is no longer in line."""
        self._waited.labels(version, "admitted" if admitted else "left").observe(seconds)

    def evicted(self, version: str) -> None:
        """Count a generation that was stopped for another."""
        self._evicted.labels(version).inc()

    def client_disconnected(self, version: str) -> None:
        """Count a client that disconnected."""
        self._disconnects.labels(version).inc()


class BreakerMetrics:
    """State and refusals of all circuit breakers.

    Args:
        registry: registers the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._state = Gauge(
            "requery_breaker_state",
            "1 for the present state of a circuit breaker",
            ["name", "state"],
            registry=registry,
        )
        self._transitions = Counter(
            "requery_breaker_transitions",
            "Transitions of a circuit breaker into a state",
            ["name", "to"],
            registry=registry,
        )
        self._refused = Counter(
            "requery_breaker_refused",
            "Calls refused because a circuit breaker was not closed",
            ["name"],
            registry=registry,
        )

    def watch(self, name: str) -> None:
        """Show the breaker ``name`` from the start, closed and with zeros."""
        self._show(name, "closed")
        self._refused.labels(name)
        for state in STATES:
            self._transitions.labels(name, state)

    def moved(self, name: str, state: State) -> None:
        """The breaker ``name`` is in another state now."""
        self._show(name, state)
        self._transitions.labels(name, state).inc()

    def refused(self, name: str) -> None:
        """The breaker ``name`` has refused a call."""
        self._refused.labels(name).inc()

    def _show(self, name: str, current: State) -> None:
        for state in STATES:
            self._state.labels(name, state).set(state == current)
