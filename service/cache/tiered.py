"""Memory first, then Redis if there is one."""

from __future__ import annotations

from service.cache.memory import MemoryCache
from service.cache.protocol import Hit
from service.cache.redis import RedisCache
from service.candidates import Generation


class TieredCache:
    """The cache that the pipeline sees.

    Args:
        memory: asked first.
        shared: asked next; what it has is copied into memory.
        read_budget_s: bound on one look-up in the shared tier, within the caller's own budget.
    """

    def __init__(
        self, memory: MemoryCache, shared: RedisCache | None = None, *, read_budget_s: float = 0.015
    ) -> None:
        self._memory = memory
        self._shared = shared
        self._read_budget_s = read_budget_s

    async def get(self, key: str, *, budget_s: float) -> Hit | None:
        """The generation under ``key`` from the nearest tier that has it."""
        generation = self._memory.get(key)
        if generation is not None:
            return Hit(generation, "memory")
        if self._shared is None or budget_s <= 0:
            return None
        generation = await self._shared.get(key, budget_s=min(budget_s, self._read_budget_s))
        # While we waited, a generation may have finished and filled memory: without this look the
        # caller would start a second one. The same object also saves judging it again.
        nearer = self._memory.peek(key)
        if nearer is not None:
            return Hit(nearer, "memory")
        if generation is None:
            return None
        self._memory.put(key, generation)
        return Hit(generation, "redis")

    async def put(self, key: str, generation: Generation) -> None:
        """Keep ``generation`` in every tier; memory has it before this first waits."""
        self._memory.put(key, generation)
        if self._shared is not None:
            await self._shared.put(key, generation)

    async def close(self) -> None:
        """Close the shared tier."""
        if self._shared is not None:
            await self._shared.close()
