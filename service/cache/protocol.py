"""What the pipeline asks of the cache."""

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
    """Serve it, and make it anew in the background."""


class Purged(NamedTuple):
    """How many entries a purge removed from each tier; most are in both."""

    memory: int
    redis: int


class Cache(Protocol):
    """Keeps generations by key. A cache never fails a request: faults count as a miss."""

    @property
    def epoch(self) -> int:
        """Now, as :meth:`put` understands it: take it when a generation begins."""

    async def get(self, key: str, *, budget_s: float) -> Hit | None:
        """The generation under ``key``, if it can be had within ``budget_s`` seconds."""

    async def put(
        self, key: str, generation: Generation, *, empty: bool = False, since: int | None = None
    ) -> None:
        """Keep a complete generation; gives up silently (but counted) when it cannot.

        Args:
            key: what it is kept under.
            generation: with all of its candidates.
            empty: the version's own filter accepts none of the candidates: such an entry lives
                shorter.
            since: the :attr:`epoch` when it was begun; what has been purged since is not kept.
        """

    async def purge_query(self, digests: Iterable[str], query: str) -> Purged:
        """Forget what the versions with these digests have for a normalised query."""

    async def purge_version(self, digest: str) -> Purged:
        """Forget everything of the version with this digest."""

    async def close(self) -> None:
        """Let go of connections; idempotent."""
