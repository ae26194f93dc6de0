"""Metrics of loading, reconciling and supervising versions."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.engine.matrices import Matrices
from service.versions.memory_budget import MemoryBudget
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion

LOADS = ("ready", "failed", "given_up")
UNLOADS = ("drained", "cut_off", "failed")

LossReason = Literal["died", "hung", "failing"]
LOSS_REASONS: tuple[LossReason, ...] = ("died", "hung", "failing")

_OUTAGE_BUCKETS_S = (1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 600, 1800)


class LoaderMetrics:
    """Results of loads and unloads, the state of each version, and memory.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._loads = Counter(
            "requery_version_loads",
            "Attempts to load a version by result",
            ["version", "result"],
            registry=registry,
        )
        self._unloads = Counter(
            "requery_version_unloads",
            "Unloads of a version by result; cut_off ended what was in flight",
            ["version", "result"],
            registry=registry,
        )
        self._state = Gauge(
            "requery_version_state",
            "1 for the state that the version is in",
            ["version", "state"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "requery_version_in_flight",
            "Requests and generations in flight with the version",
            ["version"],
            registry=registry,
        )
        self._matrices = Gauge(
            "requery_engine_matrices_info",
            "1 for the way in which the CPU multiplies the version's matrices",
            ["version", "matrices"],
            registry=registry,
        )
        self._catalogue_age = Gauge(
            "requery_catalogue_age_seconds",
            "Since the catalogue that a version looks rewrites up in was taken from the shop",
            ["version"],
            registry=registry,
        )
        self._memory = Gauge(
            "requery_engine_memory_bytes",
            "Estimated memory of all engines (reserved), and what they may take (limit)",
            ["kind"],
            registry=registry,
        )

    def watch(self, versions: VersionRegistry, memory: MemoryBudget) -> None:
        """Read states, in-flight counts and memory at every scrape."""
        versions.watch(self._watch)
        self._memory.labels("reserved").set_function(
            lambda: memory.reserved(v.manifest for v in versions if v.holds_memory)
        )
        if memory.limit_bytes is not None:
            self._memory.labels("limit").set(memory.limit_bytes)

    def loaded(self, version: str, result: str) -> None:
        """Count a load with one of :data:`LOADS` as its result."""
        self._loads.labels(version, result).inc()

    def unloaded(self, version: str, result: str) -> None:
        """Count an unload with one of :data:`UNLOADS` as its result."""
        self._unloads.labels(version, result).inc()

    def _watch(self, version: ModelVersion) -> None:
        for state in State:
            gauge = self._state.labels(version.name, state.value)
            gauge.set_function(partial(_is_in, version, state))
        for matrices in get_args(Matrices):
            gauge = self._matrices.labels(version.name, matrices)
            gauge.set_function(partial(_multiplies, version, matrices))
        self._in_flight.labels(version.name).set_function(lambda: version.in_flight.count)
        if version.manifest.catalogue is not None:
            made_at = version.manifest.catalogue.made_at.timestamp()
            age = self._catalogue_age.labels(version.name)
            age.set_function(lambda: time.time() - made_at)
        for result in LOADS:
            self._loads.labels(version.name, result)


class ReconcilerMetrics:
    """How far this replica is from the desired versions.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._missing = Gauge(
            "requery_roster_missing",
            "Versions that this replica should have loaded and that are not ready here",
            registry=registry,
        )

    def watch(self, missing: Callable[[], int]) -> None:
        """Read ``missing`` at every scrape."""
        self._missing.set_function(missing)


class SupervisorMetrics:
    """Engines that were suspected and replaced, and the length of each outage.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._restarts = Counter(
            "requery_engine_restarts",
            "Engines replaced by reason: died, hung (work and no progress), failing",
            ["version", "reason"],
            registry=registry,
        )
        self._suspected = Gauge(
            "requery_engine_suspected",
            "1 while an engine calls itself healthy, does not answer, and so gets no requests",
            ["version"],
            registry=registry,
        )
        self._outage = Histogram(
            "requery_engine_outage_seconds",
            "From the loss of an engine (of a hung one: its last progress) until the version was "
            "ready again",
            ["version"],
            registry=registry,
            buckets=_OUTAGE_BUCKETS_S,
        )

    def watch(self, versions: VersionRegistry) -> None:
        """Show every version from the start, and read suspicion at every scrape."""
        versions.watch(self._watch)

    def restarted(self, version: str, reason: LossReason) -> None:
        """Count an engine that is being replaced."""
        self._restarts.labels(version, reason).inc()

    def recovered(self, version: str, seconds: float) -> None:
        """Record an outage that has ended after ``seconds``."""
        self._outage.labels(version).observe(seconds)

    def _watch(self, version: ModelVersion) -> None:
        self._suspected.labels(version.name).set_function(lambda: float(version.suspected))
        self._outage.labels(version.name)
        for reason in LOSS_REASONS:
            self._restarts.labels(version.name, reason)


def _multiplies(version: ModelVersion, matrices: str) -> float:
    return float(version.matrices == matrices)


def _is_in(version: ModelVersion, state: State) -> float:
    return float(version.state is state)
