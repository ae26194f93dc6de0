"""Changes to the shared overrides, one at a time or all at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from service.control.documents import Document
from service.errors import (
    FieldError,
    InvalidRequest,
    OverrideConflict,
    UnknownOverride,
)
from service.overrides.entries import ID, Entry, Pin, new_id
from service.overrides.live import Overrides
from service.overrides.table import MAX_ENTRIES, Table

MAX_CHARACTERS = 4_000_000
"""Most characters of all texts, because every replica reads all of them at every change."""

_Change = Callable[[Sequence[Entry]], Sequence[Entry]]
"""Makes the new entries from those in force."""


class OverrideEditor:
    """Changes of the shared document by the API. Each change also drops expired entries.

    Args:
        document: the shared document.
        live: the overrides in force, with the clock and the file.
    """

    def __init__(self, document: Document[Table], live: Overrides) -> None:
        self._document = document
        self._live = live
        # Changes of this process take turns, so that only other replicas can interfere.
        self._turn = asyncio.Lock()

    @property
    def revision(self) -> int:
        """Revision of the shared document from which a change is made."""
        return self._document.stored

    @property
    def durable(self) -> bool:
        """Whether changes reach all replicas and survive a restart."""
        return self._document.durable

    async def add(self, draft: Entry, *, author: str) -> Entry:
        """Put a new entry into force; returns it as stored, with its id.

        Raises:
            InvalidRequest: it has expired already.
            OverrideConflict: its id is taken, its subject has an entry, or there is no room.
            NewerSchema, DocumentStoreUnavailable: it could not be written.
        """
        entry = self._completed(draft, name=draft.id or new_id(), author=author)

        def change(entries: Sequence[Entry]) -> Sequence[Entry]:
            if any(other.id == entry.id for other in entries):
                raise OverrideConflict(f"override {entry.id} exists; PUT it to replace it")
            self._check_alone(entry)
            return [*entries, entry]

        await self._apply(change, "overrides.add", author, entry.reason, None)
        return entry

    async def put(
        self, name: str, draft: Entry, *, author: str, expected: int | None = None
    ) -> tuple[Entry, bool]:
        """Replace the entry with the id ``name``, or add it; returns whether it is new.

        Raises:
            InvalidRequest: the id is invalid or differs from the entry's, or it has expired.
            OverrideConflict: its subject has another entry, there is no room, or the id is in the
                file.
            StaleRevision: the document is not at revision ``expected`` (if one is given).
            NewerSchema, DocumentStoreUnavailable: it could not be written.
        """
        if not re.fullmatch(ID, name):
            raise InvalidRequest(
                [FieldError("id", "must be 1 to 64 letters, digits, dots, dashes or underscores")]
            )
        if draft.id not in (None, name):
            raise InvalidRequest([FieldError("id", "is not the one in the path; leave it out")])
        kept: list[Entry] = []
        new = False

        def change(entries: Sequence[Entry]) -> Sequence[Entry]:
            nonlocal new
            before = next((other for other in entries if other.id == name), None)
            if before is None:
                self._check_not_of_file(name)
            new = before is None
            entry = self._completed(
                draft,
                name=name,
                author=author,
                created_at=None if before is None else before.created_at,
            )
            self._check_alone(entry)
            kept[:] = [entry]
            if before is None:
                return [*entries, entry]
            return [entry if other is before else other for other in entries]

        await self._apply(change, "overrides.put", author, draft.reason, expected)
        return kept[0], new

    async def remove(
        self, name: str, *, author: str, reason: str | None = None, expected: int | None = None
    ) -> None:
        """Take the entry with the id ``name`` out of force.

        Raises:
            UnknownOverride: there is none.
            OverrideConflict: the entry is in the file.
            StaleRevision: the document is not at revision ``expected`` (if one is given).
            NewerSchema, DocumentStoreUnavailable: it could not be written.
        """

        def change(entries: Sequence[Entry]) -> Sequence[Entry]:
            left = [other for other in entries if other.id != name]
            if len(left) == len(entries):
                self._check_not_of_file(name)
                raise UnknownOverride(
                    f"there is no override {name[:64]!a}; GET /overrides lists them"
                )
            return left

        await self._apply(change, "overrides.delete", author, reason, expected)

    async def replace_all(
        self, drafts: Sequence[Entry], *, author: str, reason: str | None, expected: int | None
    ) -> int:
        """Replace all entries by these; returns the new revision.

        Raises:
            InvalidRequest: two have the same subject or id, or one has expired.
            StaleRevision: the document is not at revision ``expected`` (``None``: whatever it is).
            NewerSchema, DocumentStoreUnavailable: it could not be written.
        """
        entries: list[Entry] = []
        for i, draft in enumerate(drafts):
            try:
                entries.append(self._completed(draft, name=draft.id or new_id(), author=author))
            except InvalidRequest as error:
                raise InvalidRequest(
                    [FieldError(f"overrides.{i}.{e.field}", e.detail) for e in error.errors]
                ) from None
        return await self._apply(lambda _: entries, "overrides.replace", author, reason, expected)

    async def _apply(
        self,
        change: _Change,
        action: str,
        author: str,
        reason: str | None,
        expected: int | None,
    ) -> int:
        def make(table: Table) -> Table:
            now = self._live.now()
            return _bounded(change([e for e in table.entries if now < e.expires]))

        async with self._turn:
            return await self._document.update(
                make, expected=expected, action=action, author=author, reason=reason
            )

    def _completed(
        self, draft: Entry, *, name: str, author: str, created_at: datetime | None = None
    ) -> Entry:
        now = self._live.now()
        if draft.expires <= now:
            raise InvalidRequest(
                [FieldError("expires_at", "has passed; leave it out if it is never to end")]
            )
        missing = {
            "id": name,
            "author": author,
            "created_at": created_at or datetime.fromtimestamp(int(now), UTC),
        }
        return draft.model_copy(
            update={
                field: value for field, value in missing.items() if getattr(draft, field) is None
            }
        )

    def _check_alone(self, entry: Entry) -> None:
        other = self._document.value.conflict(entry, self._live.now())
        if other is not None:
            raise OverrideConflict(
                f"override {other.id} ({other.kind}) is about the same {entry.subject_field}; "
                "PUT or DELETE that one"
            )

    def _check_not_of_file(self, name: str) -> None:
        if self._live.from_file(name):
            raise OverrideConflict(
                f"override {name} is in the file of REQUERY_OVERRIDES_FILE; change it there"
            )


def _characters(entry: Entry) -> int:
    texts = entry.rewrites if isinstance(entry, Pin) else ()
    return len(entry.subject) + len(entry.reason) + sum(map(len, texts))


def _bounded(entries: Sequence[Entry]) -> Table:
    if len(entries) > MAX_ENTRIES:
        raise OverrideConflict(
            f"there would be {len(entries)} overrides, and at most {MAX_ENTRIES} are kept; "
            "delete some first"
        )
    if sum(map(_characters, entries)) > MAX_CHARACTERS:
        raise OverrideConflict(
            f"the texts of all overrides may have {MAX_CHARACTERS} characters together; "
            "delete some overrides first"
        )
    return Table(entries)
