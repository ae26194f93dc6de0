"""The cache as the pipeline uses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from service.filtering.generation import Generation

Tier = Literal["memory", "redis"]


class Hit(NamedTuple):
    """A cached generation, the tier that had it, and whether it is past its soft time-to-live."""

    generation: Generation
    tier: Tier
    stale: bool = False
    """Serve it, and generate it again in the background."""


class Purged(NamedTuple):
    """Entries that a purge removed from each tier; most are in both."""

    memory: int
    redis: int


class Cache(Protocol):
    """Stores generations by key. It never fails a request: a fault counts as a miss."""

    @property
    def epoch(self) -> int:
        """The number of purges so far: take it when a generation begins, for :meth:`put`."""

    async def get(self, key: str, *, budget_s: float) -> Hit | None:
        """The generation under ``key``, if it can be had within ``budget_s`` seconds."""

    async def put(
        self, key: str, generation: Generation, *, empty: bool = False, since: int | None = None
    ) -> None:
        """Store a complete generation; a failure is counted, not raised.

        Args:
            key: its cache key.
            generation: with all of its candidates.
            empty: the version's own filter accepts none of the candidates; such an entry expires
                sooner.
            since: the :attr:`epoch` when it began; what has been purged since is not stored.
        """

    async def purge_query(self, digests: Iterable[str], query: str) -> Purged:
        """Forget what the versions with these digests have for a normalised query."""

    async def purge_version(self, digest: str) -> Purged:
        """Forget everything of the version with this digest."""

    async def close(self) -> None:
        """Close all connections; idempotent."""
