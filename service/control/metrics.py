"""Metrics of the document store and its documents."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

REFUSALS = ("unreadable", "newer_schema", "invalid")
"""Reasons for not taking a stored document."""


class ControlMetrics:
    """State of the store, and revisions, changes and refusals of each document.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._up = Gauge(
            "requery_control_board_up",
            "1 if the document store answered the last request",
            registry=registry,
        )
        self._revision = Gauge(
            "requery_control_document_revision",
            "Revision of the document in force; 0 if the store has none",
            ["document"],
            registry=registry,
        )
        self._missing = Gauge(
            "requery_control_document_missing",
            "1 if the document has disappeared from the store; its last good value is in force",
            ["document"],
            registry=registry,
        )
        self._changes = Counter(
            "requery_control_document_changes",
            "New values taken by this process, its own writes included",
            ["document"],
            registry=registry,
        )
        self._refused = Counter(
            "requery_control_documents_refused",
            "Stored documents that could not be taken, by reason",
            ["document", "reason"],
            registry=registry,
        )
        self._local_kill = Gauge(
            "requery_local_kill",
            "1 while this replica's own kill switch is on",
            registry=registry,
        )
        self._up.set(1)

    def watch(self, document: str) -> None:
        """Show ``document`` from the start."""
        self._revision.labels(document)
        self._missing.labels(document)
        self._changes.labels(document)
        for reason in REFUSALS:
            self._refused.labels(document, reason)

    def store_up(self, up: bool) -> None:
        """Show whether the store answered the last request."""
        self._up.set(up)

    def watch_local_kill(self, on: Callable[[], bool]) -> None:
        """Read the state of this replica's own kill switch at every scrape."""
        self._local_kill.set_function(on)

    def taken(self, document: str, revision: int) -> None:
        """Count a new value in force."""
        self._revision.labels(document).set(revision)
        self._missing.labels(document).set(0)
        self._changes.labels(document).inc()

    def gone(self, document: str) -> None:
        """Show that the document has disappeared from the store."""
        self._revision.labels(document).set(0)
        self._missing.labels(document).set(1)

    def refused(self, document: str, reason: str) -> None:
        """Count a document that was not taken; ``reason`` is one of :data:`REFUSALS`."""
        self._refused.labels(document, reason).inc()
