"""Token buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.resilience.rate_limit import RateLimiter
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_and_then_as_many_as_flow_in(clock: Clock) -> None:
    buckets = RateLimiter(per_s=10, burst=3, clock=clock)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.1)
    clock.now += 0.05
    assert buckets.take("a") == pytest.approx(0.05)  # what was refused has cost nothing
    clock.now += 0.05
    assert [buckets.take("a") == 0 for _ in range(2)] == [True, False]
    clock.now += 100
    assert [buckets.take("a") == 0 for _ in range(4)] == [True, True, True, False]


def test_names_do_not_share(clock: Clock) -> None:
    buckets = RateLimiter(per_s=1, burst=1, clock=clock)
    assert [buckets.take(name) == 0 for name in "aabb"] == [True, False, True, False]


def test_looking_takes_nothing(clock: Clock) -> None:
    buckets = RateLimiter(per_s=2, burst=1, clock=clock)
    assert [buckets.wait("a") for _ in range(3)] == [0, 0, 0]
    assert len(buckets) == 0
    buckets.take("a")
    assert buckets.wait("a") == buckets.wait("a") == pytest.approx(0.5)


def test_only_so_many_are_kept_and_the_one_used_longest_ago_goes(clock: Clock) -> None:
    buckets = RateLimiter(per_s=1, burst=1, most=3, clock=clock)
    for name in "abc":
        buckets.take(name)
    assert buckets.take("a")  # refused, and used all the same
    buckets.take("d")
    assert len(buckets) == 3
    assert buckets.wait("a")
    assert not buckets.wait("b")
    for i in range(1000):
        buckets.take(str(i))
    assert len(buckets) == 3


@given(
    per_s=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    steps=st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_no_more_get_through_than_the_burst_and_what_flowed_in(
    per_s: float, burst: int, steps: list[float]
) -> None:
    clock = Clock()
    buckets = RateLimiter(per_s=per_s, burst=burst, clock=clock)
    taken = 0
    for step in steps:
        clock.now += step / per_s
        wait = buckets.take("a")
        assert wait >= 0
        taken += not wait
        assert taken <= burst + (clock.now - 1000.0) * per_s + 1e-3
    clock.now += buckets.wait("a") + 1e-6
    assert not buckets.take("a")  # the wait that it names is enough
