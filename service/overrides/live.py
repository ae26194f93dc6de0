"""The overrides in force in this process, looked up by every request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from service.config.watched_file import FollowedFile
from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore
from service.filtering.words import words
from service.overrides.entries import Entry, Pin, Source, fold
from service.overrides.metrics import OverrideMetrics
from service.overrides.table import Table, TableCodec

SCHEMA = 1
"""Schema of the document that this release writes."""


@dataclass(frozen=True, slots=True)
class Override:
    """The relevance team's decision about one query."""

    kind: Literal["blocked", "pinned"]
    rewrites: tuple[str, ...] = ()
    """The rewrites of a pinned query as written; not yet cut, and with blocked terms."""


def overrides_document(store: DocumentStore, metrics: ControlMetrics) -> Document[Table]:
    """The shared document of overrides."""
    codec = TableCodec()
    return Document(
        store,
        "overrides",
        schema=SCHEMA,
        parse=codec.parse,
        initial=Table(),
        dump=codec.dump,
        metrics=metrics,
    )


class Overrides:
    """Look-ups in memory over the shared document and the file.

    An entry of the document goes before an entry of the file about the same query; terms of both
    are blocked. Every look-up checks the expiry.

    Args:
        document: the shared document.
        file: the read-only file, already loaded; ``None`` if there is none.
        metrics: counts hits.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        document: Document[Table],
        *,
        file: FollowedFile[Table] | None = None,
        metrics: OverrideMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._metrics = metrics
        self._clock = clock
        self._tables = [document.value, file.value if file is not None else Table(source="file")]
        self._hits: Counter[tuple[Source, str]] = Counter()
        document.on_change(self._take)
        for table in self._tables:
            metrics.holds(table)

    def of(self, query: str) -> Override | None:
        """The override of a query, if there is one; counts a hit.

        Args:
            query: in the normal form of any version; case does not matter.
        """
        key: str | None = None
        for table in self._tables:
            if not table.has_queries:
                continue
            if key is None:
                key = fold(query)
            entry = table.of(key, self._clock())
            if entry is not None:
                self._hit(table, entry)
                if isinstance(entry, Pin):
                    return Override("pinned", tuple(entry.rewrites))
                return Override("blocked")
        return None

    @property
    def has_terms(self) -> bool:
        """Whether any term is blocked, expired ones included."""
        return any(table.has_terms for table in self._tables)

    def blocked(self, text: str) -> bool:
        """Whether a rewrite holds a blocked term as whole words; counts a hit if it does.

        Args:
            text: in the normal form of any version.
        """
        parts: tuple[str, ...] | None = None
        for table in self._tables:
            if not table.has_terms:
                continue
            if parts is None:
                parts = words(text)
            entry = next(table.terms_in(parts, self._clock()), None)
            if entry is not None:
                self._hit(table, entry)
                return True
        return False

    async def run(self) -> None:
        """Follow the file, if there is one, until cancelled."""
        if self._file is not None:
            await self._file.follow(self._take)

    def now(self) -> float:
        """The time by which entries expire, in seconds since the epoch."""
        return self._clock()

    def in_force(self) -> Iterator[tuple[Entry, Source, int]]:
        """Every entry that has not expired, with its source and its hits in this process."""
        now = self._clock()
        for table in self._tables:
            for entry in table.entries:
                if now < entry.expires:
                    yield entry, table.source, self._hits[table.source, entry.id or ""]

    def from_file(self, name: str) -> bool:
        """Whether the file has an entry with this id."""
        return any(entry.id == name for entry in self._tables[1].entries)

    @property
    def file_problem(self) -> str | None:
        """Why the present file was not taken."""
        return None if self._file is None else self._file.problem

    def _hit(self, table: Table, entry: Entry) -> None:
        self._metrics.hit(entry.kind)
        self._hits[table.source, entry.id or ""] += 1

    def _take(self, table: Table) -> None:
        """Put a new table of one source into force."""
        self._tables[table.source == "file"] = table
        self._metrics.holds(table)
        there = {entry.id for entry in table.entries}
        for source, name in list(self._hits):
            if source == table.source and name not in there:
                del self._hits[source, name]
