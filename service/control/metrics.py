"""What the control plane counts: its store, and the documents on it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

REFUSALS = ("unreadable", "newer_schema", "invalid")
"""Why a stored document is not taken."""


class ControlMetrics:
    """Metrics of the store and of every document.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._up = Gauge(
            "requery_control_board_up",
            "1 if the shared control documents could be reached the last time",
            registry=registry,
        )
        self._revision = Gauge(
            "requery_control_document_revision",
            "Revision of the document that is in force here; 0 if there is none in the store",
            ["document"],
            registry=registry,
        )
        self._missing = Gauge(
            "requery_control_document_missing",
            "1 if the document was in the store and is gone; its last good value is in force",
            ["document"],
            registry=registry,
        )
        self._changes = Counter(
            "requery_control_document_changes",
            "Values that this process took over, its own writes included",
            ["document"],
            registry=registry,
        )
        self._refused = Counter(
            "requery_control_documents_refused",
            "Stored documents that were not taken, by reason",
            ["document", "reason"],
            registry=registry,
        )
        self._local_kill = Gauge(
            "requery_local_kill",
            "1 while the kill switch of this replica alone is on",
            registry=registry,
        )
        self._up.set(1)

    def watch(self, document: str) -> None:
        """Show ``document`` from the start, with zeros."""
        self._revision.labels(document)
        self._missing.labels(document)
        self._changes.labels(document)
        for reason in REFUSALS:
            self._refused.labels(document, reason)

    def store_up(self, up: bool) -> None:
        """Whether the store answered the last time."""
        self._up.set(up)

    def watch_local_kill(self, on: Callable[[], bool]) -> None:
        """Read at every scrape whether the kill switch of this replica alone is on."""
        self._local_kill.set_function(on)

    def taken(self, document: str, revision: int) -> None:
        """A value came into force."""
        self._revision.labels(document).set(revision)
        self._missing.labels(document).set(0)
        self._changes.labels(document).inc()

    def gone(self, document: str) -> None:
        """The document is no longer in the store."""
        self._revision.labels(document).set(0)
        self._missing.labels(document).set(1)

    def refused(self, document: str, reason: str) -> None:
        """A stored document was not taken; ``reason`` is one of :data:`REFUSALS`."""
        self._refused.labels(document, reason).inc()
