from __future__ import annotations

import pytest

from loadtests.bench.figures import Spread, ratios, spreads


def test_a_spread_is_the_median_and_the_ends() -> None:
    spread = Spread.of([3.0, 1.0, 10.0])
    assert spread == Spread(3.0, 1.0, 10.0, 3)
    assert str(spread) == "3 (1 to 10)"
    assert spread is not None
    assert spread.content() == {"median": 3.0, "least": 1.0, "most": 10.0, "rounds": 3}


def test_a_ratio_is_taken_within_a_round() -> None:
    # The machine was half as fast in the second round: the ratio does not care.
    rounds = [{"a": 10.0, "b": 5.0}, {"a": 5.0, "b": 2.5}, {"a": 9.0, "b": 3.0}]
    assert ratios(rounds, "a", "b") == Spread(2.0, 2.0, 3.0, 3)


@pytest.mark.parametrize("broken", [{"a": 1.0}, {"b": 1.0}, {"a": 1.0, "b": 0.0}])
def test_rounds_without_both_are_left_out(broken: dict[str, float]) -> None:
    assert ratios([broken, {"a": 4.0, "b": 2.0}], "a", "b") == Spread(2.0, 2.0, 2.0, 1)
    assert ratios([broken], "a", "b") is None


def test_each_figure_has_its_own_spread() -> None:
    found = spreads([{"a": 1.0}, {"a": 3.0, "b": 2.0}])
    assert found == {"a": Spread(2.0, 1.0, 3.0, 2), "b": Spread(2.0, 2.0, 2.0, 1)}
