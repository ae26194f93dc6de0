from __future__ import annotations

import pytest

from loadtests.bench.knee import Point, Rising, knee

RISING = Rising(start=10.0, factor=2.0, most=5, refine=2, share=0.99)


def test_the_knee_is_between_the_last_kept_and_the_first_lost() -> None:
    points = [Point(20, 0.995), Point(10, 1.0), Point(40, 0.5), Point(28, 0.99)]
    assert knee(points, 0.99) == (28, 40)


def test_a_rate_above_one_that_was_lost_does_not_count() -> None:
    assert knee([Point(10, 1.0), Point(20, 0.9), Point(40, 1.0)], 0.99) == (10, 20)


def test_without_a_lost_rate_there_is_no_limit_and_without_a_kept_one_no_knee() -> None:
    assert knee([Point(10, 1.0)], 0.99) == (10, None)
    assert knee([Point(10, 0.1)], 0.99) == (None, 10)
    assert knee([], 0.99) == (None, None)


@pytest.mark.parametrize(("capacity", "last"), [(50.0, 80.0), (3.0, 10.0), (1e9, 160.0)])
def test_rates_rise_until_one_is_lost(capacity: float, last: float) -> None:
    points: list[Point] = []
    while (rate := RISING.next(points)) is not None:
        points.append(Point(rate, 1.0 if rate <= capacity else 0.0))
        assert len(points) < 20
    rates = [p.rate for p in points]
    grid = [r for r in rates if r in {10.0 * 2**i for i in range(5)}]
    assert grid == sorted(grid)
    assert grid[-1] == last
    if capacity == 50.0:
        between = rates[len(grid) :]
        assert len(between) == 2
        assert all(40.0 < rate < 80.0 for rate in between)
        kept, lost = knee(points, 0.99)
        assert kept is not None
        assert lost is not None
        assert kept <= capacity < lost
    else:
        assert rates == grid
