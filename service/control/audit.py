"""What a change changed, for the audit trail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

MAX_BYTES = 16 * 1024
"""Most that the audit trail keeps of one side of a change."""


def difference(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of two JSON objects in which they differ.

    Only fields that differ are there; of lists only the members that the other list lacks (so a
    mere change of order shows as two empty lists). A side over :data:`MAX_BYTES` as JSON is
    replaced by ``{"omitted_bytes": n}``: a long document must not fill the trail.
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
