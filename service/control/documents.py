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

    What is in the store and cannot be taken (it is of a newer schema, or ``parse`` refuses it) is
    logged and counted once, and the last good value stays in force. So it does when the document
    disappears; nothing is written back then, since another process may know better.

    Args:
        store: where it is stored. The document follows it from now on.
        name: in the store.
        schema: that this release writes. Older ones are given to ``parse`` too.
        parse: reads a body; raises ValueError for one that it does not take.
        initial: in force until a document has been read.
        dump: the inverse of ``parse``: a JSON object.
        metrics: where changes and refusals are counted.
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
        """Revision of :attr:`value`; 0 if the store has no such document (any more)."""
        return self._revision

    @property
    def stored(self) -> int:
        """Revision in the store as it was last seen here: what a change is made from.

        The same as :attr:`revision`, unless what is stored was not taken.
        """
        return self._stored

    @property
    def durable(self) -> bool:
        """Whether changes are seen by all replicas and survive a restart."""
        return self._store.durable

    async def refresh(self) -> None:
        """Read the store now; if it does not answer, the last good value stays in force."""
        try:
            await self.reread()
        except DocumentStoreUnavailable as error:
            # The store has said that it cannot be reached.
            _log.debug("control_document_not_read", document=self._name, reason=str(error))

    async def reread(self) -> None:
        """:meth:`refresh` for who has to know.

        Raises:
            DocumentStoreUnavailable: the store does not answer.
        """
        try:
            found = await self._store.read(self._name)
        except UnreadableDocument:
            self._see(Absent.UNREADABLE)
        else:
            self._see(Absent.GONE if found is None else found)

    async def replace(
        self,
        new: T,
        *,
        expected: int | None,
        action: str,
        author: str,
        reason: str | None = None,
    ) -> int:
        """Store ``new`` for all replicas; it is in force here when this returns.

        Every change is told in the log (event ``audit``) and noted in the audit trail of the
        store, with the fields that it changed.

        Args:
            new: the new value.
            expected: the revision that it was made from; 0 if there was none, ``None`` to replace
                whatever there is.
            action: what was done ("routing.put").
            author: who did it.
            reason: why.

        Returns:
            The new revision.

        Raises:
            StaleRevision: someone else changed it since ``expected``.
            NewerSchema: a newer release has written it.
            DocumentStoreUnavailable: the store did not answer.
        """
        body = dict(self._dump(new))
        self._parse(body)  # what this release itself would refuse must not reach the others
        replaced, before = self._revision, dict(self._dump(self._value))
        stored = await self._store.write(self._name, body, schema=self._schema, expected=expected)
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

    async def update(
        self,
        make: Callable[[T], T],
        *,
        expected: int | None,
        action: str,
        author: str,
        reason: str | None = None,
    ) -> int:
        """Read the store, and :meth:`replace` the value by what ``make`` makes of it.

        Args:
            make: the new value from the one in the store (from the last good one if that cannot
                be taken). Called again if someone else was faster; what it raises is raised.
            expected: the revision that is to be changed; with ``None`` any, and then the change
                is tried a few times.
            action: what was done.
            author: who did it.
            reason: why.

        Returns:
            The new revision.

        Raises:
            StaleRevision, NewerSchema, DocumentStoreUnavailable: as in :meth:`replace`.
        """
        for tried in range(_TRIES):
            if tried:
                # Two that keep getting in each other's way must not do so in step.
                await asyncio.sleep(random.uniform(0, _PAUSE_S * 2**tried))
            # Of a store that cannot be read nobody has to find out that it cannot be written.
            await self.reread()
            if expected is not None and self._stored != expected:
                raise StaleRevision(self._name, self._stored)
            try:
                return await self.replace(
                    make(self._value),
                    expected=self._stored,
                    action=action,
                    author=author,
                    reason=reason,
                )
            except StaleRevision:
                if expected is not None:
                    raise
        raise DocumentStoreUnavailable(f"{self._name} is being changed by many at once; try again")

    def on_change(self, told: Callable[[T], None]) -> None:
        """Call ``told`` with each new value; a fault of it is logged."""
        self._listeners.append(told)

    def _see(self, state: Stored | Absent) -> None:
        """Take over what the store has, if it can be taken."""
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
        for told in self._listeners:
            try:
                told(value)
            except Exception:  # noqa: BLE001 - one listener must not keep others from being told
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
