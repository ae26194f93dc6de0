from __future__ import annotations

from typing import Any

import pytest

from loadtests.bench import sweep
from loadtests.bench.plans import SweepPlan
from loadtests.exchange import Failure, Outcome

PLAN = SweepPlan(step_s=6.0, good_share=0.9)


def outcome(due: float, source: str = "engine", *, late: bool = False, kind: str = "known") -> Any:
    done = due + (3.0 if late else 0.1)
    return Outcome("step", kind, due, due, done, 2.0, 200, "ok", source)


def test_the_hit_ratio_is_followed_by_when_requests_were_due() -> None:
    outcomes = [outcome(0.1), outcome(0.5, "memory"), outcome(5.5, "redis"), outcome(5.9, "memory")]
    refused = Outcome("step", "known", 5.6, 5.6, 5.6, 2.0, failure=Failure.REFUSED)
    told = sweep._hit_ratios([*outcomes, refused], 6.0, 12.0, 4.0)
    assert told == [
        {"at_s": 12.5, "rate": 4.0, "hit_ratio": 0.5},
        {"at_s": 17.5, "rate": 4.0, "hit_ratio": 1.0},
    ]


def test_a_step_tells_known_from_unseen_queries() -> None:
    outcomes = [outcome(1.0, "memory"), outcome(2.0, kind="unseen", late=True)]
    step = sweep._step(4.0, PLAN, outcomes)
    assert step["good_share"] == 0.5
    assert step["latency_by_kind_ms"]["known"]["p50"] == pytest.approx(100.0)
    assert step["latency_by_kind_ms"]["unseen"]["p50"] == pytest.approx(3000.0)


def test_a_step_without_arrivals_is_not_kept_up_with() -> None:
    assert sweep._step(4.0, PLAN, [])["good_share"] == 0.0


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
