"""Which queries are the head, and what share of the searches they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.precompute.plan import Plan


def normal(raw: str) -> str | None:
    return raw.strip().lower() or None


def plan(**counts: float) -> Plan:
    return Plan.of(counts, normal)


def test_queries_that_are_the_same_are_one_and_the_most_frequent_come_first() -> None:
    made = Plan.of({"b": 2, "A ": 1, "a": 2, "c": 1, "d": 0, " ": 4}, normal)
    assert made.queries == ("a", "b", "c")
    assert made.counts == (3, 2, 1)
    # What cannot be rewritten is traffic all the same.
    assert made.total == 10


@pytest.mark.parametrize(
    ("coverage", "top", "head"),
    [
        (1.0, None, 4),
        (0.5, None, 1),
        (0.51, None, 2),
        (0.8, None, 2),
        (0.81, None, 3),
        (1.0, 3, 3),
        (0.5, 3, 1),
        (1.0, 99, 4),
    ],
)
def test_the_head_ends_at_the_share_or_the_number(
    coverage: float, top: int | None, head: int
) -> None:
    made = plan(a=50, b=30, c=15, d=5)
    assert made.head(coverage=coverage, top=top) == head


def test_a_share_that_cannot_be_had_is_all_there_is() -> None:
    made = Plan.of({"a": 1, " ": 9}, normal)
    assert made.head(coverage=0.5) == 1
    assert made.share([0]) == pytest.approx(0.1)


def test_of_nothing_there_is_no_head() -> None:
    assert Plan.of({" ": 3}, normal).head() == 0
    assert Plan.of({}, normal).share([]) == 0


counts = st.dictionaries(
    st.sampled_from([*"abcdefgh"]), st.floats(0.1, 1e6) | st.integers(1, 9), min_size=1
)


@given(counts, st.floats(0.01, 1))
def test_the_head_is_enough_and_no_query_too_long(found: dict[str, float], wanted: float) -> None:
    made = Plan.of(found, normal)
    head = made.head(coverage=wanted)
    assert made.share(range(head)) >= wanted - 1e-6
    assert made.share(range(head - 1)) < wanted
    assert math.isclose(made.share(range(len(made.queries))), 1)


@given(counts)
def test_the_order_of_the_log_changes_nothing(found: dict[str, float]) -> None:
    backwards = Plan.of(dict(reversed(found.items())), normal)
    assert backwards.queries == Plan.of(found, normal).queries
    assert backwards.digest == Plan.of(found, normal).digest


def test_another_log_has_another_digest() -> None:
    assert len({plan(a=1, b=1).digest, plan(a=2, b=1).digest, plan(a=1).digest}) == 3
