from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.statistics import Interval, bootstrap, calibration_error, hit_rate, tagging


def test_all_equal_values_leave_no_doubt() -> None:
    assert bootstrap([0.25] * 30) == Interval(0.25, 0.25, 0.25)


def test_a_known_case() -> None:
    # 400 zeros and ones, half each: the standard error of the mean is 0.5 / 20 = 0.025, so that
    # the interval is about 0.5 +- 1.96 x 0.025.
    interval = bootstrap([0.0, 1.0] * 200)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.451, abs=0.005)
    assert interval.high == pytest.approx(0.549, abs=0.005)


def test_paired_differences_are_less_in_doubt_than_their_parts() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(size=300)
    better = base + 0.01 + rng.normal(scale=0.01, size=300)
    assert bootstrap(better - base).low > 0
    assert bootstrap(better).low < bootstrap(base).high


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_nothing_gives_nan() -> None:
    assert all(math.isnan(v) for v in bootstrap([]).as_list())


def test_figures_are_rounded_for_the_record() -> None:
    assert Interval(1 / 3, 0.1, 2 / 3).as_list() == [0.3333, 0.1, 0.6667]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    interval = bootstrap(values)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_the_area_by_hand() -> None:
    # Relevant 0.9, 0.4; irrelevant 0.6, 0.2, 0.1. Of the 6 pairs (relevant, irrelevant) all but
    # (0.4, 0.6) are in the right order: 5/6. At 0.5: right are 0.9, 0.2 and 0.1 of five.
    labels = [True, True, False, False, False]
    result = tagging(labels, [0.9, 0.4, 0.6, 0.2, 0.1])
    assert result["pairs"] == 5
    assert result["relevant_share"] == 0.4
    area, accuracy = result["auc"], result["accuracy"]
    assert isinstance(area, list)
    assert isinstance(accuracy, list)
    assert area[0] == 0.8333
    assert accuracy[0] == 0.6
    assert area[1] <= area[0] <= area[2] <= 1.0


def test_the_calibration_error_by_hand() -> None:
    # Bin 0.8 to 0.9: three pairs given 0.8 on average, two of them relevant, off by 0.1333; bin 0
    # to 0.1: one pair given 0, irrelevant; the last bin holds 1: one pair, relevant.
    labels = [True, True, False, False, True]
    assert calibration_error(labels, [0.8, 0.8, 0.8, 0.0, 1.0]) == pytest.approx(0.4 / 5)
    assert calibration_error([True, False], [0.0, 1.0]) == 1.0
    assert tagging(labels, [0.8, 0.8, 0.8, 0.0, 1.0])["calibration_error"] == 0.08


def test_exactly_one_half_counts_as_relevant() -> None:
    result = tagging([True, False], [0.5, 0.499])
    assert result["accuracy"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("labels", [[], [True], [False, False]])
def test_one_kind_alone_cannot_be_measured(labels: list[bool]) -> None:
    with pytest.raises(ValueError, match="relevant and irrelevant"):
        tagging(labels, [0.5] * len(labels))


class TestHitRate:
    def test_interval(self) -> None:
        # Whichever two of the two queries are drawn: 1/1, 1/4 or 2/5.
        found = hit_rate([1, 1], [1, 4])
        assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.25, 1.0))

    def test_without_engaged_products(self) -> None:
        assert math.isnan(hit_rate([0], [0]).mean)
        assert math.isnan(hit_rate([], []).mean)
