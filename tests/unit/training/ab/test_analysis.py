from __future__ import annotations

import math

import pytest

from training.ab.analysis import (
    analyse,
    arm_figures,
    detectable,
    expected_gain,
    rate,
    sample_ratio,
    two_proportions,
)
from training.ab.errors import ExperimentError
from training.ab.run import CONTROL, Asked, Search, Visit
from training.ab.shoppers import Tail
from training.ab.user_model import Browsed, Chances

NOWHERE = Tail("none", frozenset())


def search(
    query: str = "rug",
    *,
    clicks: tuple[int, ...] = (),
    bought: int | None = None,
    asked: Asked | None = None,
    expected: float = 0.0,
    plain: float = 0.0,
) -> Search:
    chances = Chances(expected, expected)
    return Search(query, asked, Browsed(clicks, bought), chances, Chances(plain, plain))


def visit(arm: str, *searches: Search, unit: str = "u") -> Visit:
    return Visit(unit, arm, searches)


def asked(version: str | None, *rewrites: str, seconds: float = 0.01) -> Asked:
    return Asked(version, "ok" if version else "timeout (deadline)", rewrites, seconds)


def test_a_share_has_a_wilson_interval() -> None:
    # Wilson: (p + z2/2n +- z sqrt(p q/n + z2/4n2)) / (1 + z2/n), for 8 of 20 and z = 1.96.
    z2 = 1.959964**2
    middle, half = 0.4 + z2 / 40, math.sqrt(z2 * (0.4 * 0.6 / 20 + z2 / 1600))
    found = rate(8, 20)
    assert (found["count"], found["of"], found["rate"]) == (8, 20, 0.4)
    assert found["low"] == pytest.approx((middle - half) / (1 + z2 / 20), abs=1e-6)
    assert found["high"] == pytest.approx((middle + half) / (1 + z2 / 20), abs=1e-6)
    assert rate(0, 0)["rate"] is None


@pytest.mark.parametrize("of", range(1, 70))
def test_an_interval_holds_its_share(of: int) -> None:
    for count in (0, of):
        assert rate(count, of)["low"] <= count / of <= rate(count, of)["high"]


def test_two_proportions_by_the_textbook() -> None:
    found = two_proportions(60, 200, 40, 200)
    # Pooled: p = 0.25, z = 0.1 / sqrt(0.25 * 0.75 * 2 / 200) = 2.3094.
    z = 0.1 / math.sqrt(0.25 * 0.75 * 2 / 200)
    assert found["difference"] == pytest.approx(0.1)
    assert found["p"] == pytest.approx(math.erfc(z / math.sqrt(2)))
    # Newcombe's interval, from the Wilson limits of each share.
    one, other = rate(60, 200), rate(40, 200)
    below = math.hypot(0.3 - one["low"], other["high"] - 0.2)
    above = math.hypot(one["high"] - 0.3, 0.2 - other["low"])
    assert found["low"] == pytest.approx(0.1 - below, abs=1e-6)
    assert found["high"] == pytest.approx(0.1 + above, abs=1e-6)


@pytest.mark.parametrize("count", [0, 50])
def test_where_all_did_the_same_nothing_is_found(count: int) -> None:
    found = two_proportions(count, 50, count, 50)
    assert (found["difference"], found["p"]) == (0.0, 1.0)
    assert found["low"] < 0 < found["high"]


def test_the_smallest_effect_by_the_normal_formula() -> None:
    effect = (1.959964 + 0.841621) * math.sqrt(1 / 1000 + 1 / 500)
    wanted = math.sin(math.asin(math.sqrt(0.1)) + effect / 2) ** 2 - 0.1
    assert detectable(0.1, 1000, 500) == pytest.approx(wanted, abs=1e-5)
    assert detectable(0.1, 4000, 2000) < detectable(0.1, 1000, 500)
    # No share can rise over 1.
    assert detectable(0.99, 10, 10) == pytest.approx(0.01)


def test_a_split_as_it_was_set_up() -> None:
    shares = {"control": 0.5, "a-1": 0.25, "b-1": 0.25}
    fair = sample_ratio({"control": 1010, "a-1": 505, "b-1": 485}, shares)
    # 10 squared / 1000 + 5 squared / 500 + 15 squared / 500 = 0.6, two degrees of freedom.
    assert fair["p"] == pytest.approx(math.exp(-0.3))
    assert not fair["mismatch"]
    assert fair["arms"]["a-1"] == {"seen": 505, "expected": 500.0}


def test_a_split_that_lost_visitors_is_found() -> None:
    shares = {"control": 0.5, "a-1": 0.5}
    assert sample_ratio({"control": 1000, "a-1": 850}, shares)["mismatch"]
    assert sample_ratio({"control": 1000, "default-1": 1000}, shares)["mismatch"]


def test_figures_of_an_arm() -> None:
    visits = [
        visit(
            "a-1",
            search(clicks=(1, 3), bought=3, asked=asked("a-1", "carpet", seconds=0.1)),
            search(clicks=(2,), bought=2, asked=asked("a-1", "rugs", seconds=0.2)),
        ),
        visit("a-1", search(clicks=(1,), asked=asked(None, seconds=0.3))),
        visit("a-1", search(asked=asked("a-1", seconds=0.4))),
    ]
    figures = arm_figures(visits)
    assert (figures["visitors"], figures["searches"]) == (3, 4)
    assert (figures["clicks"], figures["purchases"]) == (4, 2)
    # Two purchases of one visitor are one visitor.
    assert (figures["ucvr"]["count"], figures["uctr"]["count"]) == (1, 2)
    # "rugs" is "rug" again: only one search of four got a rewrite.
    assert figures["coverage"] == 0.25
    assert figures["statuses"] == {"ok": 3, "timeout (deadline)": 1}
    assert figures["latency_ms"]["p50"] == pytest.approx(250)


def test_no_calls_have_no_latency() -> None:
    figures = arm_figures([visit(CONTROL, search())])
    assert figures["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert figures["coverage"] == 0


def test_what_is_expected_is_compared_for_the_same_visitors() -> None:
    # 1 - 0.5 * 0.5 = 0.75 against 1 - 0.8 * 0.5 = 0.6; and nothing.
    visits = [
        visit("a-1", search(expected=0.5, plain=0.2), search(expected=0.5, plain=0.5)),
        visit("a-1", search(expected=0.3, plain=0.3)),
    ]
    assert expected_gain(visits)["ucvr"][0] == pytest.approx(0.075)


def crowd(arm: str, count: int, bought: int, query: str = "rug") -> list[Visit]:
    call = None if arm == CONTROL else asked(arm)
    return [
        visit(
            arm,
            search(query, clicks=(1,), bought=1 if i < bought else None, asked=call),
            unit=f"{arm}-{query}-{i}",
        )
        for i in range(count)
    ]


def test_a_clear_winner_and_the_long_tail() -> None:
    visits = crowd(CONTROL, 400, 40) + crowd("a-1", 200, 80) + crowd("b-1", 200, 20)
    visits += crowd(CONTROL, 30, 3, "long oak table lamp")
    visits += crowd("a-1", 10, 5, "long oak table lamp")
    shares = {CONTROL: 0.5, "a-1": 0.25, "b-1": 0.25}
    tail = Tail("long", frozenset({"long oak table lamp"}))
    found = analyse(visits, shares, tail)
    tests = {(t["metric"], t["arm"], t["against"]): t for t in found["all"]["tests"]}
    pairs = (("a-1", CONTROL), ("b-1", CONTROL), ("b-1", "a-1"))
    assert set(tests) == {(metric, *pair) for metric in ("ucvr", "uctr") for pair in pairs}
    assert tests["ucvr", "a-1", CONTROL]["p_holm"] < 1e-6
    assert tests["ucvr", "a-1", CONTROL]["low"] > 0
    assert tests["ucvr", "b-1", "a-1"]["high"] < 0
    assert tests["ucvr", "b-1", CONTROL]["p"] > 0.05
    assert all(t["p_holm"] >= t["p"] for t in tests.values())
    long_tail = found["long_tail"]
    assert long_tail["rule"] == "long"
    assert long_tail["arms"]["a-1"]["ucvr"]["count"] == 5
    # An arm that nobody of the slice is in is not compared.
    assert long_tail["arms"]["b-1"]["visitors"] == 0
    assert {t["arm"] for t in long_tail["tests"]} == {"a-1"}


def test_who_answered_is_checked_against_the_assignment() -> None:
    visits = [
        *crowd(CONTROL, 5, 1),
        visit("a-1", search(asked=asked("b-1")), search(asked=asked("a-1"))),
        visit("a-1", search(asked=asked(None))),
        visit("b-1", search(asked=asked("b-1"))),
    ]
    found = analyse(visits, {CONTROL: 0.5, "a-1": 0.25, "b-1": 0.25}, NOWHERE)
    assert found["visitors_by_another_version"] == 1
    assert found["visitors_unanswered"] == 1
    seen = {arm: one["seen"] for arm, one in found["sample_ratio"]["arms"].items()}
    assert seen == {CONTROL: 5, "a-1": 0, "b-1": 2}
    assert found["all"]["arms"]["a-1"]["visitors"] == 2
    assert found["long_tail"]["tests"] == []


def test_arms_without_visitors_cannot_be_compared() -> None:
    with pytest.raises(ExperimentError, match="b-1 has no visitors"):
        analyse(crowd("a-1", 3, 1), {"a-1": 0.9, "b-1": 0.1}, NOWHERE)
