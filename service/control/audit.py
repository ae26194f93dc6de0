"""The audit trail: who changed what, in the log and in the document store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from service.control.store import DocumentStore
from service.errors import DocumentStoreUnavailable

_log = structlog.get_logger(component="control")
_audit = structlog.get_logger(component="audit")

MAX_BYTES = 16 * 1024
"""Longest state before or after a change that the audit trail keeps, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change.

    Attributes:
        document: name of the document.
        action: what was done ("routing.put").
        author: who did it.
        reason: why.
        revision: of the document after the change.
        replaced: its revision before.
        before: the fields that were changed, with their old values.
        after: the same fields with their new values.
        replica: the only replica that the change is for; ``None`` if it is for all.
    """

    document: str
    action: str
    author: str
    reason: str | None
    revision: int
    replaced: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    replica: str | None = None


async def note(store: DocumentStore, change: Change, *, within_s: float | None = None) -> None:
    """Record a change in the log (event ``audit``) and in the audit trail.

    If the store does not answer, a warning is logged: the change is in force already.

    Args:
        store: holds the audit trail.
        change: the change.
        within_s: longest wait for the store, in seconds; ``None``: the store's own limit.
    """
    entry = asdict(change)
    if change.replica is None:
        del entry["replica"]
    _audit.info("audit", **entry)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        async with asyncio.timeout(within_s):
            await store.note({"time": now, **entry})
    except (DocumentStoreUnavailable, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        _log.warning("audit_not_noted", document=change.document, reason=reason)


def difference(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields in which two JSON objects differ, with the values of each.

    Of two lists only the members that the other one lacks are kept (a change of order shows as two
    empty lists). A side longer than :data:`MAX_BYTES` as JSON becomes ``{"omitted_bytes": n}``, so
    that a long document does not fill the trail.
    """
    left, right = {}, {}
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old == new and (key in before) == (key in after):
            continue
        if isinstance(old, list) and isinstance(new, list):
            old, new = _lacking(old, new), _lacking(new, old)
        if key in before:
            left[key] = old
        if key in after:
            right[key] = new
    return _bounded(left), _bounded(right)


def _lacking(members: list[Any], others: list[Any]) -> list[Any]:
    known = {_canonical(one) for one in others}
    return [one for one in members if _canonical(one) not in known]


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _bounded(side: dict[str, Any]) -> dict[str, Any]:
    size = len(orjson.dumps(side))
    return side if size <= MAX_BYTES else {"omitted_bytes": size}
