from __future__ import annotations

import math
from typing import Any

import pytest

from loadtests.bench import sweep
from loadtests.bench.sweep import Point, SweepPlan, knee, next_rate
from loadtests.exchange import Outcome

PLAN = SweepPlan(step_s=6.0, good_share=0.9)
RISING = SweepPlan(start_rate=10.0, factor=2.0, most_steps=5, refine=2, good_share=0.99)


def outcome(due: float, source: str = "engine", *, late: bool = False, kind: str = "known") -> Any:
    done = due + (3.0 if late else 0.1)
    return Outcome("step", kind, due, due, done, 2.0, 200, "ok", source)


def test_a_step_tells_known_from_unseen_queries() -> None:
    outcomes = [outcome(1.0, "memory"), outcome(2.0, kind="unseen", late=True)]
    step = sweep._step(4.0, PLAN, outcomes)
    assert step["good_share"] == 0.5
    assert sweep._step(4.0, PLAN, [])["good_share"] == 0.0
    assert step["latency_by_kind_ms"]["known"]["p50"] == pytest.approx(100.0)
    assert step["latency_by_kind_ms"]["unseen"]["p50"] == pytest.approx(3000.0)


def figures(*, lost: float | None, lag: float = 1.0) -> dict[str, Any]:
    step = sweep._step(4.0, PLAN, [outcome(1.0, "memory")])
    step["generator_lag_ms"] = {"p99": lag}
    return {
        "deadline_ms": 2000,
        "knee_per_s": 4.0,
        "first_rate_not_kept_up_with_per_s": lost,
        "steps": [step],
    }


def test_the_knee_is_shown_with_its_latency() -> None:
    rows = sweep._rows(figures(lost=6.0), PLAN)
    assert rows[0].figure == "4.0 requests/s"
    assert rows[0].note == ""
    assert "p50 100.0" in rows[2].figure


@pytest.mark.parametrize(("lost", "lag"), [(None, 1.0), (6.0, 50.0)])
def test_a_knee_that_is_not_the_services_is_invalid(lost: float | None, lag: float) -> None:
    assert sweep._rows(figures(lost=lost, lag=lag), PLAN)[0].note.startswith("INVALID")


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ({20: 0.995, 10: 1.0, 40: 0.5, 28: 0.99}, (28, 40)),
        ({10: 1.0, 20: 0.9, 40: 1.0}, (10, 20)),
        ({10: 1.0}, (10, None)),
        ({10: 0.1}, (None, 10)),
        ({}, (None, None)),
    ],
)
def test_the_knee_is_between_the_last_kept_and_the_first_lost(
    points: dict[float, float], found: tuple[float | None, float | None]
) -> None:
    assert knee([*points.items()], 0.99) == found


@pytest.mark.parametrize(("capacity", "last"), [(50.0, 80.0), (3.0, 10.0), (1e9, 160.0)])
def test_rates_rise_until_one_is_lost(capacity: float, last: float) -> None:
    points: list[Point] = []
    while (rate := next_rate(RISING, points)) is not None:
        points.append((rate, 1.0 if rate <= capacity else 0.0))
        assert len(points) < 20
    rates = [rate for rate, _ in points]
    grid = [r for r in rates if r in {10.0 * 2**i for i in range(5)}]
    assert grid == sorted(grid)
    assert grid[-1] == last
    if capacity == 50.0:
        between = rates[len(grid) :]
        assert len(between) == 2
        assert all(40.0 < rate < 80.0 for rate in between)
        kept, lost = knee(points, 0.99)
        assert (kept or math.inf) <= capacity < (lost or 0.0)
    else:
        assert rates == grid
