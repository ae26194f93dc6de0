from __future__ import annotations

import pytest

from loadtests.exchange import Failure
from loadtests.summary import (
    good_share,
    goodput,
    milliseconds,
    percentile,
    recovery_s,
    summarise,
    worst_over_deadline,
)
from tests.unit.loadtests.outcomes import outcome


def test_times_are_told_in_milliseconds() -> None:
    told = milliseconds([0.001 * v for v in range(1, 1001)])
    assert told == {
        "count": 1000,
        "p50": pytest.approx(500),
        "p90": pytest.approx(900),
        "p99": pytest.approx(990),
        "p99.9": pytest.approx(999, abs=1.1),
        "max": pytest.approx(1000),
    }
    assert milliseconds([]) is None
    assert percentile([], 50.0) is None
    assert percentile([0.1, 0.2, 0.3], 60.0) == 0.2  # a value that was observed


def test_goodput_counts_useful_answers_in_time_alone() -> None:
    outcomes = [
        outcome(),
        outcome(status="partial", latency=1.01),
        outcome(status="none"),
        outcome(status="timeout"),
        outcome(status="fallback"),
        outcome(latency=2.0),
        outcome(code=503, status="overloaded"),
        outcome(code=0, failure=Failure.RESET),
    ]
    assert goodput(outcomes, 2.0) == 1.5
    assert goodput(outcomes, 2.0, grace_s=0.0) == 1.0
    assert good_share(outcomes) == 3 / 8
    assert good_share([]) is None


def test_a_summary_counts_every_request_once() -> None:
    outcomes = [
        outcome(source="memory"),
        outcome(latency=3.0, source="engine"),
        outcome(code=503, status="overloaded", latency=0.002),
        outcome(code=0, status="", failure=Failure.UNANSWERED, latency=30.0),
    ]
    told = summarise(outcomes, 10.0)
    assert (
        told.items()
        >= {
            "requests": 4,
            "offered_per_s": 0.4,
            "codes": {"200": 2, "503": 1},
            "statuses": {"ok": 2, "overloaded": 1},
            "sources": {"engine": 1, "memory": 1},
            "failures": {"unanswered": 1},
            "late": 2,
            "goodput_per_s": 0.1,
        }.items()
    )
    assert told["latency_ms"]["count"] == 3
    assert told["latency_of_good_ms"]["max"] == pytest.approx(100)
    assert told["latency_by_code_ms"]["503"]["max"] == pytest.approx(2)


def test_the_worst_end_after_a_deadline() -> None:
    outcomes = [
        outcome(latency=0.5),
        outcome(due=1.0, sent=3.0, latency=2.9),
        outcome(latency=1.2),
        outcome(latency=60.0, failure=Failure.LEFT, code=0),
        outcome(latency=60.0, failure=Failure.REFUSED, code=0),
    ]
    assert worst_over_deadline(outcomes) == pytest.approx(1.9)
    # The generator was 2 s behind with that one.
    assert worst_over_deadline(outcomes, from_sending=True) == pytest.approx(0.2)
    hanging = outcome(latency=30.0, failure=Failure.UNANSWERED, code=0)
    assert worst_over_deadline([*outcomes, hanging]) == pytest.approx(29.0)
    assert worst_over_deadline([]) is None


def test_recovery_is_the_moment_from_which_it_stays_well() -> None:
    outcomes = [outcome(due=10 + i / 10, status="timeout") for i in range(20)]
    outcomes += [outcome(due=12 + i / 10) for i in range(180)]
    assert recovery_s(outcomes, start=10.0, end=30.0, share=1.0) == 2.0
    assert recovery_s(outcomes, start=12.0, end=30.0, share=1.0) == 0.0
    assert recovery_s([], start=0.0, end=30.0, share=0.95) is None
    spell = [outcome(due=10 + i, status="ok" if 2 < i < 8 else "timeout") for i in range(20)]
    assert recovery_s(spell, start=10.0, end=30.0, share=0.95) is None
