"""How long an entry is fresh, and how long it is kept at all."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from service.config.settings import Settings
from service.filtering.generation import Generation


class Entry(NamedTuple):
    """A generation and its times, which are all in seconds since the epoch."""

    generation: Generation
    stored_at: float
    empty: bool
    """Whether the version's own filter accepted none of the candidates."""
    stale_at: float
    """From here on the entry is served, and should be made anew."""
    gone_at: float
    """From here on there is no such entry."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The rules of age, the same in both tiers and on all replicas.

    Ages count from the moment an entry was made, which travels with it: a copy is as old as its
    original. Each key has a share of ``jitter`` of its own, the same everywhere, so that entries
    made together go at different times and all replicas agree on when.

    Args:
        hard_s: seconds after which an entry is gone, at most.
        soft_s: seconds after which it is stale, at most; as long as ``hard_s`` or longer, it never
            is.
        empty_s: ``hard_s`` of entries without an acceptable rewrite, where that is shorter.
        jitter: share in [0, 1) by which the life of an entry is cut short, at most.
        clock: seconds since the epoch.
    """

    hard_s: float
    soft_s: float = float("inf")
    empty_s: float = float("inf")
    jitter: float = 0.0
    clock: Callable[[], float] = time.time

    @classmethod
    def of(cls, settings: Settings) -> Lifetimes:
        """The rules of a service with these settings."""
        return cls(
            hard_s=settings.cache_ttl_s,
            soft_s=settings.cache_soft_ttl_s,
            empty_s=settings.cache_empty_ttl_s,
            jitter=settings.cache_ttl_jitter,
        )

    def entry(
        self,
        key: str,
        generation: Generation,
        *,
        empty: bool = False,
        stored_at: float | None = None,
    ) -> Entry:
        """``generation`` with its times.

        Args:
            key: its cache key.
            generation: the candidates.
            empty: whether the version's own filter accepts none of them.
            stored_at: when it was made, in seconds since the epoch; ``None`` is now. A time ahead
                of this machine's clock counts as now.
        """
        now = self.clock()
        made = now if stored_at is None else min(stored_at, now)
        share = 1.0 - self.jitter * zlib.crc32(key.encode()) / 2**32
        life = min(self.hard_s, self.empty_s) if empty else self.hard_s
        return Entry(
            generation,
            made,
            empty,
            stale_at=made + share * min(self.soft_s, life),
            gone_at=made + share * life,
        )

    def stale(self, entry: Entry) -> bool:
        """Whether ``entry`` should be made anew."""
        return self.clock() >= entry.stale_at

    def gone(self, entry: Entry) -> bool:
        """Whether ``entry`` is too old to be served."""
        return self.clock() >= entry.gone_at
