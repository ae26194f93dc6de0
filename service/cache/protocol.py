"""What the pipeline asks of a cache tier."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from service.candidates import Generation


class Hit(NamedTuple):
    """A cached generation and the tier that had it."""

    generation: Generation
    tier: str


class Cache(Protocol):
    """Keeps generations by key. A cache never fails a request: faults count as a miss."""

    async def get(self, key: str, *, budget_s: float) -> Hit | None:
        """The generation under ``key``, if it can be had within ``budget_s`` seconds."""

    async def put(self, key: str, generation: Generation) -> None:
        """Keep a complete generation; gives up silently (but counted) when it cannot."""

    async def close(self) -> None:
        """Let go of connections; idempotent."""
