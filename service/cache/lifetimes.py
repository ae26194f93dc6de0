"""How long an entry is fresh, and how long it is kept."""

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
    """From then on the entry is served, and refreshed."""
    gone_at: float
    """From then on the entry is not served."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The rules of age, the same in both tiers and on all replicas.

    The age of an entry counts from its generation, and a copy is as old as its original. Each key
    has its own share of ``jitter``, the same on all replicas, so that entries made together expire
    at different times and all replicas agree on them.

    Args:
        hard_s: longest life of an entry, in seconds.
        soft_s: longest time until it is stale, in seconds; from ``hard_s`` on it never is.
        empty_s: ``hard_s`` of entries without an acceptable rewrite, if shorter.
        jitter: largest share in [0, 1) by which a life is shortened.
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
            stored_at: when it was made, in seconds since the epoch; ``None``, or a time ahead of
                this machine's clock, is now.
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
        """Whether ``entry`` should be refreshed."""
        return self.clock() >= entry.stale_at

    def gone(self, entry: Entry) -> bool:
        """Whether ``entry`` is too old to be served."""
        return self.clock() >= entry.gone_at
