"""Rewards by hand-worked examples."""

from __future__ import annotations

import pytest

from training import rewards
from training.rewards import DROPPED, Rewards


def test_relevance_is_the_mean_score() -> None:
    assert rewards.relevance([0.9, 0.5, 0.1]) == pytest.approx(0.5)
    assert rewards.relevance([]) == 0.0


def test_productivity_is_the_share_of_engaged_products_found() -> None:
    assert rewards.productivity(["a", "b", "x"], ["a", "b", "c", "d"]) == 0.5
    assert rewards.productivity(["a"], []) == 0.0


def test_increment_leaves_out_what_the_query_finds_alone() -> None:
    # a and b are found, a by the query too: one of four is new.
    assert rewards.increment(["a", "b", "x"], ["a", "y"], ["a", "b", "c", "d"]) == 0.25
    assert rewards.increment(["a"], ["a"], ["a"]) == 0.0


@pytest.mark.parametrize(
    ("fused", "plain", "expected"),
    [(0.6, 0.5, 0.4), (0.5, 0.6, -0.4), (0.5, 0.5, 0.0), (1.0, 0.2, 1.0), (0.1, 0.9, -1.0)],
)
def test_gain_is_scaled_and_bounded(fused: float, plain: float, expected: float) -> None:
    assert rewards.gain(fused, plain) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "bar", "expected"),
    [(0.3, 0.6, 0.5), (0.6, 0.6, 1.0), (0.9, 0.6, 1.0), (0.0, 0.0, 1.0)],
)
def test_a_bar_is_cleared_once(value: float, bar: float, expected: float) -> None:
    assert rewards.met(value, bar) == pytest.approx(expected)


class TestDiscovery:
    # The query's own results have 0.8: a new product is welcome from 0.6.

    def test_new_products_count_by_how_relevant_they_are(self) -> None:
        # Two of four are new: 2 * (0.9 - 0.6) and 2 * (0.7 - 0.6), over four.
        assert rewards.discovery([None, 0.9, None, 0.7], 0.8) == pytest.approx(0.2)

    def test_what_the_query_finds_too_counts_for_nothing(self) -> None:
        assert rewards.discovery([None, None], 0.8) == 0.0
        assert rewards.discovery([], 0.8) == 0.0

    def test_new_products_of_another_kind_cost(self) -> None:
        assert rewards.discovery([0.1, 0.1], 0.8) == pytest.approx(-1.0)

    def test_a_query_that_finds_rubbish_lowers_no_bar(self) -> None:
        assert rewards.discovery([0.3], 0.1) == pytest.approx(2 * (0.3 - 0.75 * 0.5))


def rules(query: str, text: str, **changes: object) -> float:
    settings: dict[str, object] = {
        "copies": 1, "group": 8, "known": 1.0, "broad": False, "added": False,
    }  # fmt: skip
    return rewards.rules(query, text, **(settings | changes))  # type: ignore[arg-type]


class TestRules:
    def test_a_good_rewrite_has_nothing_against_it(self) -> None:
        assert rules("steele stake", "steel garden stake") == 1.0

    def test_too_long(self) -> None:
        # Two words may become 2 * 1.5 + 2 = 5; ten are twice too many.
        assert rules("red hose", "a b c d e f g h i j") == pytest.approx(0.5)

    def test_nearly_the_query_again(self) -> None:
        # One letter of 25 differs: 0.04 of the 0.05 that is enough.
        query = "abcdefghij klmnopqrs tuvw"
        assert rules(query, query[:-1] + "x") == pytest.approx(0.04 / 0.05)

    def test_a_correction_of_one_letter_differs_enough(self) -> None:
        assert rules("garden hoze", "garden hose") == 1.0

    def test_the_query_with_words_added(self) -> None:
        assert rules("outdoor rug", "outdoor rug in white", added=True) == 0.0

    def test_a_word_over_and_over(self) -> None:
        assert rules("garden pipe", "hose hose hose hose") == pytest.approx(0.25)

    def test_what_the_whole_group_says(self) -> None:
        assert rules("garden pipe", "water hose", copies=8) == pytest.approx(1 / 8)
        assert rules("garden pipe", "water hose", copies=3) == pytest.approx(6 / 8)

    def test_words_that_nothing_holds(self) -> None:
        assert rules("garden pipe", "clade hose", known=0.5) == 0.5

    def test_one_broad_word(self) -> None:
        assert rules("garden pipe", "white", broad=True) == 0.0

    def test_guards_multiply(self) -> None:
        assert rules("garden pipe", "hose hose", copies=5, known=0.5) == pytest.approx(
            0.5 * 0.5 * 0.5
        )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Recall falls by 0.06.
        ({"own": 0.9, "base": 0.5, "change": -0.06}, False),
        # It finds a tenth of what the query finds.
        ({"own": 0.05, "base": 0.5, "change": 0.1}, False),
        # It finds as much, and costs nothing.
        ({"own": 0.5, "base": 0.5, "change": 0.0}, True),
        # A query that finds nothing: whatever the rewrite finds is good.
        ({"own": 0.1, "base": 0.0, "change": 0.1}, True),
        # Between the two the judge decides.
        ({"own": 0.2, "base": 0.5, "change": 0.0, "first": 0.8, "plain_first": 0.8}, True),
        ({"own": 0.2, "base": 0.5, "change": 0.0, "first": 0.4, "plain_first": 0.8}, False),
        ({"own": 0.2, "base": 0.5, "change": 0.0, "first": 0.6, "plain_first": 0.8}, None),
        # A query whose own results are bad is no excuse.
        ({"own": 0.0, "base": 0.0, "change": 0.0, "first": 0.2, "plain_first": 0.1}, False),
    ],
    ids=str,
)
def test_verdict(given: dict[str, float], expected: bool | None) -> None:
    assert rewards.verdict(**{"first": 0.0, "plain_first": 0.0, **given}) is expected


def test_agreement() -> None:
    assert rewards.agreement(tag=True, truth=True) == 1.0
    assert rewards.agreement(tag=True, truth=False) == 0.0
    assert rewards.agreement(tag=False, truth=False) == 1.0
    assert rewards.agreement(tag=False, truth=None) == 0.5


def test_fusion_is_a_weighted_sum_of_what_is_named() -> None:
    one = Rewards(relevance=0.8, increment=0.25, gain=-0.5, rules=1.0)
    assert one.fused({"relevance": 1.0, "increment": 2.0, "gain": 1.0}) == pytest.approx(0.8)
    assert one.fused({"rules": 0.5}) == 0.5
    assert DROPPED.fused({"relevance": 1.0, "rules": 0.5, "agreement": 1.0}) == -0.5
