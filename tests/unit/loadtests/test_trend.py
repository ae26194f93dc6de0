from __future__ import annotations

import random

import pytest

from loadtests.trend import trend

TIMES = [float(t) for t in range(1200)]


def test_a_steady_rise_is_told_in_percent_of_where_it_began() -> None:
    found = trend(TIMES, [1000 + t / 10 for t in TIMES])
    assert found is not None
    assert found.growth == pytest.approx(119.9)
    assert found.first == pytest.approx(1006, abs=1)
    assert found.percent == pytest.approx(11.9, abs=0.1)
    assert found.least == 1000
    assert found.most == pytest.approx(1119.9)


def test_noise_and_spikes_are_no_growth() -> None:
    rng = random.Random(1)
    values = [1000 + rng.gauss(0, 5) + (500 if i % 50 == 0 else 0) for i in range(1200)]
    values[-3:] = [3000.0] * 3
    found = trend(TIMES, values)
    assert found is not None
    assert abs(found.percent) < 0.2


def test_a_slow_rise_under_noise_is_seen() -> None:
    rng = random.Random(2)
    found = trend(TIMES, [1000 + rng.gauss(0, 5) + 0.03 * t for t in TIMES])
    assert found is not None
    assert found.percent == pytest.approx(3.6, abs=0.3)


def test_too_few_samples_have_no_trend() -> None:
    assert trend([1.0], [5.0]) is None
    flat = trend([1.0, 1.0], [5.0, 6.0])
    assert flat is not None
    assert flat.growth == 0.0


def test_each_value_needs_its_time() -> None:
    with pytest.raises(ValueError, match="time"):
        trend([1.0], [1.0, 2.0])
