"""Named JSON documents that all replicas share, and the audit trail of their changes.

Every write raises the revision of a document, and names the revision that it replaces, so that
only one of two writers wins. With Redis (:class:`service.control.redis_store.RedisDocumentStore`)
every replica follows what Redis holds, even back to an older revision after a failover that lost a
write. Without Redis (:class:`LocalDocumentStore`) the documents end with the process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import orjson
import structlog

from service.errors import DocumentStoreUnavailable, NewerSchema, StaleRevision, UnreadableDocument

__all__ = [
    "AUDIT_ENTRIES",
    "Absent",
    "DocumentStore",
    "DocumentStoreUnavailable",
    "Listener",
    "LocalDocumentStore",
    "NewerSchema",
    "StaleRevision",
    "Stored",
    "Subscribers",
    "UnreadableDocument",
    "checked",
]

_log = structlog.get_logger(component="control")

AUDIT_ENTRIES = 1000
"""Entries that the audit trail keeps."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as it is stored.

    Attributes:
        schema: of the body; raised when older releases cannot read it any more.
        revision: 1 for the first write, and higher with each.
        body: a JSON object.
    """

    schema: int
    revision: int
    body: dict[str, Any]


class Absent(Enum):
    """Why the store has no document, though it answers."""

    GONE = "gone"
    """Nothing is stored under the name."""
    UNREADABLE = "unreadable"
    """What is stored there was not written by Requery."""


Listener = Callable[[Stored | Absent], None]


class DocumentStore(Protocol):
    """Holds the documents."""

    @property
    def durable(self) -> bool:
        """Whether documents are seen by all replicas and survive a restart."""

    async def read(self, name: str) -> Stored | None:
        """The document ``name``, or ``None`` if nothing is stored under the name.

        Raises:
            UnreadableDocument: what is stored was not written by Requery.
            DocumentStoreUnavailable: the store does not answer.
        """

    async def write(
        self, name: str, body: Mapping[str, Any], *, schema: int, expected: int
    ) -> Stored:
        """Store a new revision; when it returns, subscribers in this process have seen it.

        Args:
            name: of the document.
            body: a JSON object.
            schema: of ``body``.
            expected: the revision that is replaced, 0 for none yet. An unreadable document counts
                as the last readable revision.

        Raises:
            StaleRevision: another revision is stored.
            NewerSchema: what is stored is of a newer schema than ``schema``.
            DocumentStoreUnavailable: the store did not answer; the write may have happened.
        """

    async def note(self, entry: Mapping[str, Any]) -> None:
        """Add an entry to the audit trail, which keeps the last :data:`AUDIT_ENTRIES`.

        Raises:
            DocumentStoreUnavailable: the store does not answer.
        """

    async def notes(self, limit: int) -> list[dict[str, Any]]:
        """The last ``limit`` entries of the audit trail, newest first.

        Raises:
            DocumentStoreUnavailable: the store does not answer.
        """

    def subscribe(self, name: str, listener: Listener) -> None:
        """Call ``listener`` with each new state of document ``name``, in order."""

    async def run(self) -> None:
        """Follow the writes of other processes until cancelled; never raises."""

    async def close(self) -> None:
        """Close all connections; idempotent."""


class Subscribers:
    """The listeners of each document."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[Listener]] = {}

    def add(self, name: str, listener: Listener) -> None:
        """Call ``listener`` with each new state of document ``name``."""
        self._by_name.setdefault(name, []).append(listener)

    @property
    def names(self) -> tuple[str, ...]:
        """Documents that have listeners."""
        return tuple(self._by_name)

    def notify(self, name: str, state: Stored | Absent) -> None:
        """Call all listeners of ``name``; an error of one does not affect the others."""
        for listener in self._by_name.get(name, ()):
            try:
                listener(state)
            except Exception:  # noqa: BLE001 - following must go on
                _log.exception("control_subscriber_failed", document=name)


def checked(name: str, current: Stored | None, *, schema: int, expected: int) -> None:
    """Check that a write may replace ``current``.

    Raises:
        StaleRevision, NewerSchema: as :meth:`DocumentStore.write` says.
    """
    if current is not None and current.schema > schema:
        raise NewerSchema(
            f"{name} is stored in schema {current.schema}, and this release writes schema "
            f"{schema}; change it on a replica of the newer release"
        )
    revision = 0 if current is None else current.revision
    if expected != revision:
        raise StaleRevision(name, revision)


class LocalDocumentStore:
    """Documents in the memory of this process."""

    def __init__(self) -> None:
        self._documents: dict[str, Stored] = {}
        self._notes: deque[dict[str, Any]] = deque(maxlen=AUDIT_ENTRIES)
        self._subscribers = Subscribers()

    @property
    def durable(self) -> bool:
        """False: no other replica sees the documents, and they end with the process."""
        return False

    async def read(self, name: str) -> Stored | None:
        """The document ``name``, if there is one."""
        return self._documents.get(name)

    async def write(
        self, name: str, body: Mapping[str, Any], *, schema: int, expected: int
    ) -> Stored:
        """Store a new revision and notify listeners; see :meth:`DocumentStore.write`."""
        current = self._documents.get(name)
        checked(name, current, schema=schema, expected=expected)
        # A copy, so that later changes of ``body`` do not change the stored document.
        copied = orjson.loads(orjson.dumps(body))
        stored = Stored(schema, 1 if current is None else current.revision + 1, copied)
        self._documents[name] = stored
        self._subscribers.notify(name, stored)
        return stored

    async def note(self, entry: Mapping[str, Any]) -> None:
        """Append to the audit trail."""
        self._notes.appendleft(dict(entry))

    async def notes(self, limit: int) -> list[dict[str, Any]]:
        """The last ``limit`` entries, newest first."""
        return list(self._notes)[:limit]

    def subscribe(self, name: str, listener: Listener) -> None:
        """Call ``listener`` with each new state of document ``name``."""
        self._subscribers.add(name, listener)

    async def run(self) -> None:
        """Wait to be cancelled: no other process writes here."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing to close."""
