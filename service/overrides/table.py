"""Overrides of one source, indexed for look-ups of microseconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from service.errors import FieldError, InvalidRequest
from service.overrides.entries import BlockTerm, Entry, Source, read_entry

MAX_ENTRIES = 20_000
"""Most entries of one source."""

_FIELD = "overrides"

_Term = tuple[str, ...]


class Rule(NamedTuple):
    """An entry in force until ``expires`` (seconds since the epoch)."""

    entry: Entry
    expires: float


class Table:
    """The entries of one source; immutable.

    Args:
        entries: in any order, each with its id.
        source: where they are from.

    Raises:
        InvalidRequest: two entries have the same id or subject.
    """

    def __init__(self, entries: Sequence[Entry] = (), *, source: Source = "api") -> None:
        self.entries = tuple(entries)
        self.source: Source = source
        self._queries: dict[str, Rule] = {}
        self._terms: dict[_Term, Rule] = {}
        self._lengths: dict[str, list[int]] = {}
        places: dict[tuple[str, str | None], int] = {}
        for i, entry in enumerate(entries):
            subject = entry.subject
            for field, value in ((entry.subject_field, subject), ("id", entry.id)):
                if (first := places.setdefault((field, value), i)) != i:
                    raise _twice(i, field, first)
            rule = Rule(entry, entry.expires)
            if isinstance(entry, BlockTerm):
                self._add_term(tuple(subject.split()), rule)
            else:
                self._queries[subject] = rule

    def __len__(self) -> int:
        """Entries, expired ones included."""
        return len(self.entries)

    @property
    def has_queries(self) -> bool:
        """Whether any query is blocked or pinned."""
        return bool(self._queries)

    @property
    def has_terms(self) -> bool:
        """Whether any term is blocked."""
        return bool(self._terms)

    def of(self, key: str, now: float) -> Entry | None:
        """The entry of the query whose folded form is ``key``, if it has not expired."""
        rule = self._queries.get(key)
        return rule.entry if rule is not None and now < rule.expires else None

    def terms_in(self, parts: _Term, now: float) -> Iterator[Entry]:
        """Blocked terms in a text, given as its folded words."""
        for i, word in enumerate(parts):
            for length in self._lengths.get(word, ()):
                rule = self._terms.get(parts[i : i + length])
                if rule is not None and now < rule.expires:
                    yield rule.entry

    def conflict(self, entry: Entry, now: float) -> Entry | None:
        """Another entry in force with the same subject as ``entry``, if there is one."""
        subject = entry.subject
        rule = (
            self._terms.get(tuple(subject.split()))
            if isinstance(entry, BlockTerm)
            else self._queries.get(subject)
        )
        if rule is None or rule.entry.id == entry.id or rule.expires <= now:
            return None
        return rule.entry

    def _add_term(self, term: _Term, rule: Rule) -> None:
        self._terms[term] = rule
        lengths = self._lengths.setdefault(term[0], [])
        if len(term) not in lengths:
            lengths.append(len(term))


class TableCodec:
    """Tables as stored in the shared document.

    Unchanged entries are not checked again, so that a change of one among thousands does not hold
    up requests.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, Any], Entry]] = {}

    def parse(self, body: Mapping[str, Any]) -> Table:
        """The inverse of :meth:`dump`.

        Raises:
            ValueError: the body is not what :meth:`dump` writes.
        """
        rows = body.get(_FIELD)
        if not isinstance(rows, list):
            raise ValueError(f"{_FIELD} is no list")  # noqa: TRY004 - what Document expects
        known: dict[str, tuple[dict[str, Any], Entry]] = {}
        for i, row in enumerate(rows):
            name = row.get("id") if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise ValueError(f"{_FIELD}.{i} has no id")  # noqa: TRY004 - as above
            before = self._known.get(name)
            if before is not None and before[0] == row:
                known[name] = before
                continue
            try:
                known[name] = (row, read_entry(row))
            except InvalidRequest as error:
                raise ValueError(f"{_FIELD}.{i}: {error}") from error
        if len(known) != len(rows):
            raise ValueError("two overrides have the same id")
        try:
            table = Table([entry for _, entry in known.values()])
        except InvalidRequest as error:
            raise ValueError(str(error)) from error
        self._known = known
        return table

    def dump(self, table: Table) -> dict[str, Any]:
        """A JSON object."""
        rows = []
        for entry in table.entries:
            before = self._known.get(entry.id or "")
            rows.append(before[0] if before and before[1] is entry else entry.stored())
        return {_FIELD: rows}


def _twice(index: int, field: str, first: int) -> InvalidRequest:
    return InvalidRequest(
        [
            FieldError(
                f"{_FIELD}.{index}.{field}",
                f"is the same as that of {_FIELD}.{first}; keep one of them",
            )
        ]
    )
