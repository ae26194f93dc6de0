"""The queries to precompute, by falling frequency, and their share of all searches."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

_TOLERANCE = 1e-9
"""Sums of counts are floating point."""


@dataclass(frozen=True)
class Plan:
    """Queries by falling frequency.

    Attributes:
        queries: in normal form, each once.
        counts: searches of each.
        total: searches of all rows, also of queries that cannot be rewritten.
        blank: those of rows without a query.
    """

    queries: tuple[str, ...]
    counts: tuple[float, ...]
    total: float
    blank: float = 0.0

    @classmethod
    def of(cls, counts: Mapping[str, float], normal_form: Callable[[str], str | None]) -> Plan:
        """Merge queries with the same normal form.

        Args:
            counts: searches of each query as it was typed.
            normal_form: returns ``None`` for a query that cannot be rewritten.
        """
        merged: defaultdict[str, float] = defaultdict(float)
        for raw, count in counts.items():
            query = normal_form(raw)
            if query is not None and count:
                merged[query] += count
        # Ties in alphabetical order, so that a second run has the same plan.
        ranked = sorted(merged.items(), key=lambda item: (-item[1], item[0]))
        return cls(
            tuple(query for query, _ in ranked),
            tuple(count for _, count in ranked),
            sum(counts.values()),
            sum(count for raw, count in counts.items() if not raw.strip()),
        )

    def head(self, *, top: int | None = None, coverage: float = 1.0) -> int:
        """The number of most frequent queries that make up ``coverage`` of all searches.

        Args:
            top: limit on that number.
            coverage: share in (0, 1].
        """
        most = len(self.queries) if top is None else min(top, len(self.queries))
        wanted = self.total * coverage * (1 - _TOLERANCE)
        enough = (n for n, so_far in enumerate(accumulate(self.counts), 1) if so_far >= wanted)
        return min(most, next(enough, most))

    def share(self, places: Iterable[int]) -> float:
        """Share of all searches of the queries at these places."""
        return sum(self.counts[place] for place in places) / self.total if self.total else 0.0

    @cached_property
    def digest(self) -> str:
        """Of all queries with their counts, in order."""
        hashed = hashlib.blake2b(digest_size=16)
        for query, count in zip(self.queries, self.counts, strict=True):
            hashed.update(f"{query}\n{count!r}\n".encode("utf-8", "surrogatepass"))
        return hashed.hexdigest()
