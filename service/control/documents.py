"""The live copy of a control document in this process: typed, always there, never half-read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import structlog

from service.control.audit import Change, difference, note
from service.control.metrics import ControlMetrics
from service.control.store import Absent, DocumentStore, Stored
from service.errors import DocumentStoreUnavailable, StaleRevision, UnreadableDocument

_log = structlog.get_logger(component="control")

_MAX_REASON_CHARS = 500
_TRIES = 8
"""How often a change starts again because another one came between."""
_PAUSE_S = 0.01
"""Scale of the pause before a try, in seconds; it doubles with each."""

T = TypeVar("T")


class Document(Generic[T]):
    """One document of a store.

    A stored document of a newer schema, or one that ``parse`` refuses, is logged and counted once,
    and the last good value stays in force. So it does when the document disappears; it is not
    written back, because another replica may have a newer one.

    Args:
        store: where it is stored. The document follows it from now on.
        name: in the store.
        schema: that this release writes. Older ones are given to ``parse`` too.
        parse: reads a body; raises ValueError if it cannot be taken.
        initial: in force until a document has been read.
        dump: the inverse of ``parse``: a JSON object.
        metrics: count changes and refusals.
    """

    def __init__(
        self,
        store: DocumentStore,
        name: str,
        *,
        schema: int,
        parse: Callable[[dict[str, Any]], T],
        initial: T,
        dump: Callable[[T], Mapping[str, Any]],
        metrics: ControlMetrics,
    ) -> None:
        self._store = store
        self._name = name
        self._schema = schema
        self._parse = parse
        self._dump = dump
        self._metrics = metrics
        self._value = initial
        self._revision = 0
        self._stored = 0
        self._last: Stored | Absent | None = None
        self._listeners: list[Callable[[T], None]] = []
        metrics.watch(name)
        store.subscribe(name, self._see)

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self._name

    @property
    def value(self) -> T:
        """What is in force."""
        return self._value

    @property
    def revision(self) -> int:
        """Revision of :attr:`value`; 0 if the store has no such document (now)."""
        return self._revision

    @property
    def stored(self) -> int:
        """Revision in the store as last seen here, from which a change is made.

        It differs from :attr:`revision` only while the stored document cannot be taken.
        """
        return self._stored

    @property
    def durable(self) -> bool:
        """Whether changes are seen by all replicas and survive a restart."""
        return self._store.durable

    async def refresh(self) -> None:
        """Read the store now; if it does not answer, the last good value stays in force."""
        try:
            await self._reread()
        except DocumentStoreUnavailable as error:
            # The store has logged that it cannot be reached.
            _log.debug("control_document_not_read", document=self._name, reason=str(error))

    async def update(
        self,
        change: Callable[[T], T | None],
        *,
        action: str,
        author: str,
        reason: str | None = None,
        expected: int | None = None,
    ) -> int:
        """Compare and set: read the store, and write what ``change`` makes of the value.

        The new value is in force here when this returns. Each change is logged (event ``audit``)
        and noted in the audit trail of the store, with the fields that it changed.

        Args:
            change: makes the new value from the stored one (from the last good one if the stored
                one cannot be taken); ``None`` leaves it as it is. It is called again if another
                writer came first; its errors are raised.
            action: what is done ("routing.put").
            author: who does it.
            reason: why.
            expected: the only revision that may be changed; with ``None`` any, and then the change
                is tried a few times.

        Returns:
            The new revision, or the current one if nothing is changed.

        Raises:
            StaleRevision: the document is not at revision ``expected``.
            NewerSchema: a newer release has written it.
            DocumentStoreUnavailable: the store does not answer, or other writers came first each
                time.
        """
        for tried in range(_TRIES):
            if tried:
                # Random, so that two writers do not collide in step.
                await asyncio.sleep(random.uniform(0, _PAUSE_S * 2**tried))
            await self._reread()
            if expected is not None and self._stored != expected:
                raise StaleRevision(self._name, self._stored)
            new = change(self._value)
            if new is None:
                return self._stored
            try:
                return await self._write(new, action=action, author=author, reason=reason)
            except StaleRevision:
                if expected is not None:
                    raise
        raise DocumentStoreUnavailable(f"{self._name} is being changed by many at once; try again")

    def on_change(self, listener: Callable[[T], None]) -> None:
        """Call ``listener`` with each new value; its errors are logged."""
        self._listeners.append(listener)

    async def _reread(self) -> None:
        try:
            found = await self._store.read(self._name)
        except UnreadableDocument:
            self._see(Absent.UNREADABLE)
        else:
            self._see(Absent.GONE if found is None else found)

    async def _write(self, new: T, *, action: str, author: str, reason: str | None) -> int:
        """Replace the revision that was last seen."""
        body = dict(self._dump(new))
        self._parse(body)  # what this release would refuse must not reach the other replicas
        replaced, before = self._revision, dict(self._dump(self._value))
        stored = await self._store.write(
            self._name, body, schema=self._schema, expected=self._stored
        )
        was, now = difference(before, body)
        await note(
            self._store,
            Change(
                document=self._name,
                action=action,
                author=author,
                reason=reason,
                revision=stored.revision,
                replaced=replaced,
                before=was,
                after=now,
            ),
        )
        return stored.revision

    def _see(self, state: Stored | Absent) -> None:
        """Take over the state of the store, if it can be taken."""
        if state == self._last:
            return
        self._last = state
        if isinstance(state, Stored):
            self._stored = state.revision
            self._take(state)
        elif state is Absent.UNREADABLE:
            self._refuse("unreadable", "it is no document of ours; write it again")
        elif self._stored:
            self._stored = self._revision = 0
            self._metrics.gone(self._name)
            _log.warning(
                "control_document_gone",
                document=self._name,
                detail="it is no longer stored; its last value stays in force here, and a process "
                "that starts now does not know it: write it again",
            )

    def _take(self, stored: Stored) -> None:
        if stored.schema > self._schema:
            self._refuse(
                "newer_schema",
                f"schema {stored.schema} is newer than {self._schema}: update this replica",
            )
            return
        try:
            value = self._parse(stored.body)
        except Exception as error:  # noqa: BLE001 - whatever is stored, this process goes on
            self._refuse("invalid", f"{type(error).__name__}: {error}")
            return
        self._value, self._revision = value, stored.revision
        self._metrics.taken(self._name, stored.revision)
        _log.info("control_document_taken", document=self._name, revision=stored.revision)
        for listener in self._listeners:
            try:
                listener(value)
            except Exception:  # noqa: BLE001 - the other listeners are called all the same
                _log.exception("control_listener_failed", document=self._name)

    def _refuse(self, kind: str, reason: str) -> None:
        self._metrics.refused(self._name, kind)
        _log.warning(
            "control_document_refused",
            document=self._name,
            kind=kind,
            reason=reason[:_MAX_REASON_CHARS],
            detail=f"revision {self._revision} stays in force",
        )
