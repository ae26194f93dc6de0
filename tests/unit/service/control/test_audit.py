from __future__ import annotations

from typing import Any

import pytest

from service.control.audit import MAX_BYTES, difference


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
