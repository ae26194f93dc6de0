from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import structlog

from service.control.audit import MAX_BYTES, Change, difference, note
from service.control.store import LocalDocumentStore
from service.errors import DocumentStoreUnavailable

CHANGE = Change(
    document="doc",
    action="doc.put",
    author="ada",
    reason="why not",
    revision=3,
    replaced=2,
    before={"n": 1},
    after={"n": 2},
)


@pytest.mark.parametrize(
    ("before", "after", "was", "now"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, {"b": 2}, {"b": 3}),
        ({}, {"a": None}, {}, {"a": None}),
        ({"a": None}, {}, {"a": None}, {}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, {}, {}),
        ({"a": [1, {"k": 2}]}, {"a": [{"k": 2}, 3]}, {"a": [1]}, {"a": [3]}),
        ({"a": [1, 2]}, {"a": [2, 1]}, {"a": []}, {"a": []}),
        ({"a": [1]}, {"a": None}, {"a": [1]}, {"a": None}),
    ],
)
def test_only_what_differs_is_kept(
    before: dict[str, Any], after: dict[str, Any], was: dict[str, Any], now: dict[str, Any]
) -> None:
    assert difference(before, after) == (was, now)


def test_a_change_too_long_for_the_trail_is_left_out_with_its_size() -> None:
    was, now = difference({"a": "short"}, {"a": "x" * MAX_BYTES})
    assert was == {"a": "short"}
    assert now == {"omitted_bytes": MAX_BYTES + len('{"a":""}')}


async def test_a_change_is_told_in_the_log_and_noted_in_the_store() -> None:
    store = LocalDocumentStore()
    with structlog.testing.capture_logs() as lines:
        await note(store, CHANGE)
    (noted,) = await store.notes(10)
    assert noted.pop("time").endswith("+00:00")
    assert noted == {
        "document": "doc", "action": "doc.put", "author": "ada", "reason": "why not",
        "revision": 3, "replaced": 2, "before": {"n": 1}, "after": {"n": 2},
    }  # fmt: skip
    assert lines == [{"event": "audit", "log_level": "info", "component": "audit", **noted}]


class Silent(LocalDocumentStore):
    """A store that hangs, or says that it is down."""

    down = False

    async def note(self, entry: Mapping[str, Any]) -> None:
        if self.down:
            raise DocumentStoreUnavailable("Redis does not answer")
        await asyncio.Event().wait()


@pytest.mark.parametrize("down", [True, False])
async def test_a_board_that_does_not_answer_costs_a_warning_and_the_log_still_has_the_change(
    down: bool,
) -> None:
    store = Silent()
    store.down = down
    with structlog.testing.capture_logs() as lines:
        await note(store, CHANGE, within_s=0.01)
    assert [line["event"] for line in lines] == ["audit", "audit_not_noted"]
    assert lines[1]["reason"]
