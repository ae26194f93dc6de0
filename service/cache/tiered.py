"""Memory first, then Redis if there is one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from service.cache.keys import cache_key, prefix_of, version_prefix
from service.cache.lifetimes import Entry, Lifetimes
from service.cache.memory_tier import MemoryTier
from service.cache.protocol import Hit, Purged, Tier
from service.cache.purge_log import PurgeLog
from service.cache.redis_tier import RedisTier
from service.errors import CacheUnavailable
from service.filtering.generation import Generation


class TieredCache:
    """Both tiers as one cache.

    Args:
        memory: asked first.
        shared: asked next; its entries are copied into memory.
        lifetimes: rules of age, the same as in the tiers.
        read_budget_s: longest look-up in the shared tier, within the caller's own budget.
    """

    def __init__(
        self,
        memory: MemoryTier,
        shared: RedisTier | None = None,
        *,
        lifetimes: Lifetimes,
        read_budget_s: float = 0.015,
    ) -> None:
        self._memory = memory
        self._shared = shared
        self._lifetimes = lifetimes
        self._read_budget_s = read_budget_s
        self._purge_log = PurgeLog()

    @property
    def epoch(self) -> int:
        """The number of purges so far, for :meth:`put`."""
        return self._purge_log.epoch

    async def get(self, key: str, *, budget_s: float) -> Hit | None:
        """The generation under ``key`` from the nearest tier that has it fresh, else stale."""
        near = self._memory.get(key)
        shared = self._next(near, budget_s)
        if shared is None:
            return self._hit(near, "memory")
        epoch = self.epoch
        far = await shared.get(key, budget_s=min(budget_s, self._read_budget_s))
        # A generation may have filled memory meanwhile: without this look the caller would start a
        # second one. Returning the same object also saves judging it again.
        near = self._memory.peek(key)
        if near is not None and (far is None or near.stored_at >= far.stored_at):
            return self._hit(near, "memory")
        # This look-up must not bring back what was purged while it was under way.
        if far is not None and not self._purged(key, epoch):
            self._memory.put(key, far)
        return self._hit(far, "redis")

    async def put(
        self, key: str, generation: Generation, *, empty: bool = False, since: int | None = None
    ) -> None:
        """Store ``generation`` in every tier; memory has it before this first waits.

        Nothing is stored that has been purged since the epoch ``since``.
        """
        epoch = self.epoch if since is None else since
        if self._purged(key, epoch):
            return
        entry = self._lifetimes.entry(key, generation, empty=empty)
        self._memory.put(key, entry)
        if self._shared is None:
            return
        await self._shared.put(key, entry)
        if self._purged(key, epoch):
            # The purge came during the write, and Redis may have done the write last.
            with suppress(CacheUnavailable):
                await self._shared.forget([key])

    async def purge_query(self, digests: Iterable[str], query: str) -> Purged:
        """Forget what the versions with these digests have for a query, here and in Redis.

        Args:
            digests: of the versions.
            query: in their normal form.

        Generations that are under way here are not stored. Other replicas have to call
        :meth:`forget_query`.

        Raises:
            CacheUnavailable: Redis did not answer. Memory is purged all the same.
        """
        keys = [cache_key(digest, query) for digest in digests]
        self._purge_log.note(keys)
        try:
            far = 0 if self._shared is None else await self._shared.forget(keys)
        finally:
            near = self._forget(keys)
        return Purged(near, far)

    async def purge_version(self, digest: str) -> Purged:
        """Forget everything of the version with this digest, here and in Redis.

        Other replicas have to call :meth:`forget_version`.

        Raises:
            CacheUnavailable: Redis did not answer. Memory is purged all the same.
        """
        prefix = version_prefix(digest)
        self._purge_log.note([prefix])
        try:
            far = 0 if self._shared is None else await self._shared.forget_prefix(prefix)
        finally:
            near = self.forget_version(digest)
        return Purged(near, far)

    def forget_query(self, digests: Iterable[str], query: str) -> int:
        """The part of :meth:`purge_query` that concerns the memory of this replica."""
        return self._forget(cache_key(digest, query) for digest in digests)

    def forget_keys(self, keys: Iterable[str]) -> int:
        """:meth:`forget_query` by cache keys, which tell nothing of the query."""
        return self._forget(keys)

    def forget_version(self, digest: str) -> int:
        """The part of :meth:`purge_version` that concerns the memory of this replica."""
        prefix = version_prefix(digest)
        self._purge_log.note([prefix])
        return self._memory.forget_prefix(prefix)

    async def close(self) -> None:
        """Close the shared tier."""
        if self._shared is not None:
            await self._shared.close()

    def _next(self, near: Entry | None, budget_s: float) -> RedisTier | None:
        """The shared tier, if it is to be asked when memory has ``near``."""
        if self._shared is None or budget_s <= 0:
            return None
        # Another replica may have replaced a stale entry, which is not urgent.
        wanted = near is None or (self._lifetimes.stale(near) and self._shared.up)
        return self._shared if wanted else None

    def _forget(self, keys: Iterable[str]) -> int:
        keys = list(keys)
        self._purge_log.note(keys)
        return self._memory.forget(keys)

    def _purged(self, key: str, epoch: int) -> bool:
        """Whether an entry that began at ``epoch`` has been purged since."""
        return self._purge_log.since(epoch, key, prefix_of(key))

    def _hit(self, entry: Entry | None, tier: Tier) -> Hit | None:
        if entry is None:
            return None
        return Hit(entry.generation, tier, self._lifetimes.stale(entry))
