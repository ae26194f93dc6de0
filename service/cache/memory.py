"""The tier in this process: least recently used, bounded in bytes, with a time-to-live."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from service.candidates import Generation
from service.metrics import CacheMetrics

_ENTRY_BYTES = 500
"""Python's own cost of an entry (key, node, tuple, generation), rounded up."""
_CANDIDATE_BYTES = 700
"""The same of a candidate with its verdict."""
_CHARACTER_BYTES = 64
"""The same of a character: the text twice (raw, normalised) and the set of its folded words."""


class _Entry(NamedTuple):
    generation: Generation
    expires: float
    size: int


class MemoryCache:
    """Generations by key. Not a :class:`Cache` by itself: its calls never wait, so they are plain.

    Args:
        max_bytes: bound on the estimated size of all entries; 0 keeps nothing.
        ttl_s: seconds that an entry lives.
        metrics: where operations are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        ttl_s: float,
        metrics: CacheMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        metrics.watch_memory(lambda: self._bytes, lambda: len(self._entries))

    def get(self, key: str) -> Generation | None:
        """The generation under ``key``, unless it has expired; counted as hit or miss."""
        generation = self.peek(key)
        self._metrics.count("memory", "get", "miss" if generation is None else "hit")
        return generation

    def peek(self, key: str) -> Generation | None:
        """:meth:`get`, uncounted."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.generation

    def put(self, key: str, generation: Generation) -> None:
        """Keep ``generation``; the least recently used make room."""
        size = estimated_bytes(key, generation)
        self._drop(key)
        if size > self._max_bytes:
            self._metrics.count("memory", "put", "too_large")
            return
        self._entries[key] = _Entry(generation, self._clock() + self._ttl_s, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._metrics.count("memory", "evict", "ok")
        self._metrics.count("memory", "put", "ok")

    @property
    def size_bytes(self) -> int:
        """Estimated size of all entries."""
        return self._bytes

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size


def estimated_bytes(key: str, generation: Generation) -> int:
    """Upper estimate of what an entry costs in memory."""
    characters = sum(len(c.text) for c in generation.candidates)
    return (
        _ENTRY_BYTES
        + len(key)
        + _CANDIDATE_BYTES * len(generation.candidates)
        + _CHARACTER_BYTES * characters
    )
