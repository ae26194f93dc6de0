"""Purging the cache everywhere: Redis at once, and the memory of every replica soon after.

The document ``purges`` holds the last purges, numbered. Each replica applies each of them once; a
replica that starts has an empty memory, and only takes the last number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from service.cache.keys import cache_key
from service.cache.protocol import Purged
from service.cache.tiered import TieredCache
from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore

DOCUMENT = "purges"
SCHEMA = 1
KEPT = 64
"""Purges that the document holds. A replica that was cut off for more than these keeps the purged
entries in memory until they expire."""


@dataclass(frozen=True, slots=True)
class Purge:
    """One purge: of one version's keys, or of single keys."""

    number: int
    digest: str | None = None
    keys: tuple[str, ...] = ()


Purges = tuple[Purge, ...]


def purges_document(store: DocumentStore, metrics: ControlMetrics) -> Document[Purges]:
    """The document ``purges``."""
    return Document(
        store,
        DOCUMENT,
        schema=SCHEMA,
        parse=_parse,
        initial=(),
        dump=_dump,
        metrics=metrics,
    )


class Purger:
    """Purges this replica and all others.

    Args:
        document: announces purges to the other replicas.
        cache: of this replica.
    """

    def __init__(self, document: Document[Purges], cache: TieredCache) -> None:
        self._document = document
        self._cache = cache
        self._done: int | None = None
        document.on_change(self._follow)

    @property
    def durable(self) -> bool:
        """Whether other replicas follow."""
        return self._document.durable

    def begin(self) -> None:
        """Skip the purges so far, at the start: this process has nothing in memory."""
        self._done = _last(self._document.value)

    async def query(self, forms: Iterable[tuple[str, str]], *, author: str) -> Purged:
        """Purge one query.

        Args:
            forms: the digest of each version with the query in that version's normal form.
            author: for the audit trail.

        Raises:
            CacheUnavailable, DocumentStoreUnavailable: Redis did not answer; the memory of this
                process is purged all the same.
        """
        purged = Purged(0, 0)
        keys: list[str] = []
        for digest, query in forms:
            part = await self._cache.purge_query([digest], query)
            purged = Purged(purged.memory + part.memory, purged.redis + part.redis)
            keys.append(cache_key(digest, query))
        await self._announce(Purge(0, keys=tuple(keys)), "cache.purge_query", author)
        return purged

    async def version(self, digest: str, *, author: str) -> Purged:
        """Purge all entries of the version with this digest; raises as :meth:`query` does."""
        purged = await self._cache.purge_version(digest)
        await self._announce(Purge(0, digest=digest), "cache.purge_version", author)
        return purged

    async def _announce(self, purge: Purge, action: str, author: str) -> None:
        await self._document.update(
            lambda purges: (*purges, replace(purge, number=_last(purges) + 1))[-KEPT:],
            action=action,
            author=author,
        )

    def _follow(self, purges: Purges) -> None:
        if self._done is None:
            return
        for purge in purges:
            if purge.number > self._done:
                if purge.digest is not None:
                    self._cache.forget_version(purge.digest)
                self._cache.forget_keys(purge.keys)
        self._done = max(self._done, _last(purges))


def _last(purges: Purges) -> int:
    return purges[-1].number if purges else 0


def _dump(purges: Purges) -> dict[str, Any]:
    return {
        "purges": [{"number": p.number, "digest": p.digest, "keys": list(p.keys)} for p in purges]
    }


def _parse(body: dict[str, Any]) -> Purges:
    try:
        found = tuple(
            Purge(int(row["number"]), row["digest"], tuple(map(str, row["keys"])))
            for row in body["purges"]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"is no list of purges: {error!r}") from error
    numbers = [purge.number for purge in found]
    if numbers != sorted(set(numbers)):
        raise ValueError("purges must be in order")
    return found
