from __future__ import annotations

import random

import pytest

from loadtests.trend import trend

TIMES = [float(t) for t in range(1200)]


@pytest.mark.parametrize(("rise", "percent"), [(0.0, 0.0), (0.03, 3.6), (0.1, 11.9)])
def test_a_rise_is_found_under_noise_and_spikes(rise: float, percent: float) -> None:
    rng = random.Random(1)
    values = [1000 + rise * t + rng.gauss(0, 5) + (500 if t % 50 == 0 else 0) for t in TIMES]
    values[-3:] = [3000.0] * 3
    found = trend(TIMES, values)
    assert found is not None
    assert found.percent == pytest.approx(percent, abs=0.3)
    assert found.first == pytest.approx(1000 + 60 * rise, abs=2)
    assert (found.least, found.most) == (min(values), 3000)


def test_one_sample_has_no_trend() -> None:
    assert trend([1.0], [5.0]) is None
