"""Metrics of overrides."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.overrides.entries import MODELS, Source
from service.overrides.table import Table

_READS = ("ok", "refused")


class OverrideMetrics:
    """Hits and entries of overrides, and readings of the file.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        hits = Counter(
            "requery_override_hits",
            "Queries answered by an override, and rewrites withheld for a blocked term, by kind",
            ["kind"],
            registry=registry,
        )
        self._hits = {kind: hits.labels(kind) for kind in MODELS}
        self._entries = Gauge(
            "requery_override_entries",
            "Overrides that this process holds, expired ones included",
            ["source", "kind"],
            registry=registry,
        )
        reads = Counter(
            "requery_override_file_reads",
            "Readings of the overrides file after a change, by result; after a refusal the last "
            "good entries stay in force",
            ["result"],
            registry=registry,
        )
        self._reads = {result: reads.labels(result) for result in _READS}
        sources: tuple[Source, ...] = ("api", "file")
        for source in sources:
            self.holds(Table(source=source))

    def hit(self, kind: str) -> None:
        """Count one query or rewrite."""
        self._hits[kind].inc()

    def holds(self, table: Table) -> None:
        """Show the entries of a table."""
        kinds = Tally[str](entry.kind for entry in table.entries)
        for kind in MODELS:
            self._entries.labels(table.source, kind).set(kinds[kind])

    def read(self, result: str) -> None:
        """Count one reading of the file: ``ok`` or ``refused``."""
        self._reads[result].inc()
