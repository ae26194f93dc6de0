"""The tier in this process: least recently used, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from service.cache.lifetimes import Entry, Lifetimes
from service.cache.metrics import CacheMetrics
from service.filtering.generation import Generation

_ENTRY_BYTES = 600
"""Memory of an entry without its texts (key, node, tuples, times, generation), rounded up."""
_CANDIDATE_BYTES = 700
"""Memory of a candidate with its verdict."""
_CHARACTER_BYTES = 64
"""Memory per character: the text twice (raw, normalised) and the set of its folded words."""


class _Kept(NamedTuple):
    entry: Entry
    size: int


class MemoryTier:
    """Entries by key, in this process.

    Args:
        max_bytes: bound on the estimated size of all entries; 0 stores nothing.
        lifetimes: rules of age.
        metrics: where operations are counted.
    """

    def __init__(self, *, max_bytes: int, lifetimes: Lifetimes, metrics: CacheMetrics) -> None:
        self._max_bytes = max_bytes
        self._lifetimes = lifetimes
        self._metrics = metrics
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        metrics.watch_memory(lambda: self._bytes, lambda: len(self._kept))

    def get(self, key: str) -> Entry | None:
        """The entry under ``key``, unless it is gone; counted as hit, stale or miss."""
        entry = self.peek(key)
        if entry is None:
            self._metrics.count("memory", "get", "miss")
        else:
            stale = self._lifetimes.stale(entry)
            self._metrics.count("memory", "get", "stale" if stale else "hit")
        return entry

    def peek(self, key: str) -> Entry | None:
        """:meth:`get`, uncounted."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if self._lifetimes.gone(kept.entry):
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept.entry

    def put(self, key: str, entry: Entry) -> None:
        """Store ``entry``; the least recently used entries make room."""
        size = estimated_bytes(key, entry.generation)
        self._drop(key)
        if size > self._max_bytes:
            self._metrics.count("memory", "put", "too_large")
            return
        self._kept[key] = _Kept(entry, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
            self._metrics.count("memory", "evict", "ok")
        self._metrics.count("memory", "put", "ok")

    def forget(self, keys: Iterable[str]) -> int:
        """Drop the entries under ``keys``; returns how many there were."""
        return sum(self._drop(key) for key in keys)

    def forget_prefix(self, prefix: str) -> int:
        """Drop all entries whose key starts with ``prefix``; returns how many there were."""
        return self.forget([key for key in self._kept if key.startswith(prefix)])

    @property
    def size_bytes(self) -> int:
        """Estimated size of all entries."""
        return self._bytes

    def _drop(self, key: str) -> bool:
        kept = self._kept.pop(key, None)
        if kept is None:
            return False
        self._bytes -= kept.size
        return True


def estimated_bytes(key: str, generation: Generation) -> int:
    """Upper estimate of what an entry costs in memory."""
    characters = sum(len(c.text) for c in generation.candidates)
    return (
        _ENTRY_BYTES
        + len(key)
        + _CANDIDATE_BYTES * len(generation.candidates)
        + _CHARACTER_BYTES * characters
    )
