from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from loadtests.arrivals import MAX_SECONDS, Phase, poisson


def test_gaps_are_those_of_a_poisson_process() -> None:
    due = [a.due for a in poisson([Phase("a", 50.0, 400.0)], seed=3)]
    gaps = np.diff(due)
    # 20,000 arrivals: both figures are within 3 % but for one seed in thousands.
    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)


def test_phases_follow_one_another_each_at_its_rate() -> None:
    phases = [Phase("low", 5.0, 100.0), Phase("pause", 0.0, 10.0), Phase("high", 50.0, 100.0)]
    arrivals = list(poisson(phases, seed=4))
    assert arrivals == list(poisson(phases, seed=4)) != list(poisson(phases, seed=5))
    assert all(a.due <= b.due for a, b in pairwise(arrivals))
    due = {name: [a.due for a in arrivals if a.phase == name] for name in ("low", "pause", "high")}
    assert not due["pause"]
    assert 0 < min(due["low"]) < max(due["low"]) < 100
    assert 110 < min(due["high"]) < max(due["high"]) < 210
    assert len(due["high"]) / len(due["low"]) == pytest.approx(10, rel=0.2)


def test_a_run_without_end_is_refused_before_it_begins() -> None:
    with pytest.raises(ValueError, match="too long"):
        poisson([Phase("a", 1.0, MAX_SECONDS), Phase("b", 1.0, 1.0)], seed=0)


@pytest.mark.parametrize(("rate", "seconds"), [(-1.0, 1.0), (1.0, -1.0)])
def test_nothing_is_negative(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        Phase("a", rate, seconds)
