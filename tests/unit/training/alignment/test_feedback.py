"""Feedback on samples in a small shop, and that cheating it does not pay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.unit.training.worlds import make_world
from training.alignment.feedback import Feedback, Sample
from training.data.pairs import World
from training.rewards import DROPPED, RewardName, Rewards

WEIGHTS: dict[RewardName, float] = {
    "relevance": 1.0, "productivity": 0.5, "increment": 2.0, "discovery": 2.0, "gain": 2.0,
    "rules": 1.0, "agreement": 0.5,
}  # fmt: skip
"""As in the recipe grpo-1."""

QUERY = "stel stake"


@pytest.fixture
def world() -> World:
    """A misspelt query that finds the stakes of wood and misses those of steel."""
    titles = {
        **{f"steel{i}": f"steel stake number {i}" for i in range(6)},
        **{f"post{i}": f"metal garden post number {i}" for i in range(4)},
        "oak": "oak stake",
        # More than a search returns: what they hold asks for nothing in particular.
        **{f"white{i}": f"white thing of kind{i}" for i in range(300)},
    }
    grades = {f"steel{i}": 3.0 for i in range(6)} | {"post0": 3.0, "oak": 1.0, "white0": 1.0}
    return make_world(titles, {QUERY: grades, "oak": {"oak": 3.0}})


class Scores:
    """A judge that thinks well of steel and of metal."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.asked += pairs
        return [0.9 if {"steel", "metal"} & set(t.split()) else 0.1 for _, t in pairs]


@pytest.fixture
def judge() -> Scores:
    return Scores()


@pytest.fixture
def feedback(world: World, judge: Scores) -> Feedback:
    return Feedback(world, judge, first=3)


def one(feedback: Feedback, text: str, tag: bool | None = True, others: int = 0) -> Rewards:
    """Rewards of a sample in a group of eight, ``others`` of which say the same."""
    group = [Sample(text, tag)] * (1 + others)
    group += [Sample(f"oak {i}", True) for i in range(8 - len(group))]
    return feedback.reward(QUERY, group)[0]


def test_a_rewrite_that_finds_what_the_query_misses(feedback: Feedback) -> None:
    # The query's own word "stake" finds the six stakes of steel, and the one of oak: 6 of 7. The
    # post comes with "metal".
    got = one(feedback, "metal garden post")
    assert got.relevance == 1.0
    # One of seven, where 0.6 of the query's six are enough.
    assert got.productivity == pytest.approx(1 / 3.6)
    assert got.increment == pytest.approx(1 / 7)
    # Its first three are new. The query's own are two of steel and the oak: welcome from 0.475.
    assert got.discovery == pytest.approx(2 * (0.9 - 0.75 * (0.9 + 0.9 + 0.1) / 3))
    assert got.gain == pytest.approx(4 / 7)
    assert got.rules == 1.0
    # By itself it finds a sixth of what the query finds: to people's grades no relevant rewrite.
    assert got.agreement == 0.0


def test_a_rewrite_that_finds_the_same(feedback: Feedback) -> None:
    got = one(feedback, "steel stake")
    assert got.productivity == got.relevance == 1.0
    assert got.increment == got.gain == got.discovery == 0.0
    assert got.agreement == 1.0
    assert got.rules == 1.0


def test_what_is_tagged_irrelevant_is_worth_its_tag_alone(feedback: Feedback) -> None:
    assert one(feedback, "white thing", tag=False) == Rewards(agreement=1.0)
    assert one(feedback, "steel stake", tag=False) == Rewards(agreement=0.0)


@pytest.mark.parametrize("text", ["stel stakes", "Stel  Stake", "stake stel", "", "!!"])
def test_what_the_service_would_drop_is_worth_less_than_nothing(
    feedback: Feedback, text: str
) -> None:
    assert one(feedback, text) == DROPPED


def test_what_came_to_no_end_is_worth_less_than_nothing(feedback: Feedback) -> None:
    assert one(feedback, "steel stake", tag=None) == DROPPED


def test_a_lost_number_is_worth_less_than_nothing(world: World, judge: Scores) -> None:
    world.grades["steel stake 5"] = {"steel5": 3.0}
    world.relevant["steel stake 5"] = frozenset({"steel5"})
    feedback = Feedback(world, judge, first=3)
    lost, kept = feedback.reward(
        "steel stake 5", [Sample("steel post", True), Sample("metal stake 5", True)]
    )
    assert lost == DROPPED
    assert kept.relevance > 0


def test_a_lost_brand_is_worth_less_than_nothing(world: World, judge: Scores) -> None:
    feedback = Feedback(world, judge, first=3, brands=["stel"])
    assert one(feedback, "steel stake") == DROPPED


class TestCheating:
    """Each way to please one reward without helping a shopper, against an honest rewrite."""

    def worth(self, feedback: Feedback, text: str, others: int = 0) -> float:
        return one(feedback, text, others=others).fused(WEIGHTS)

    @pytest.fixture
    def honest(self, feedback: Feedback) -> float:
        return self.worth(feedback, "steel garden stake")

    def test_copying_the_query(self, feedback: Feedback, honest: float) -> None:
        assert self.worth(feedback, "stake stel") < 0.0 < honest

    def test_stuffing_keywords(self, feedback: Feedback, honest: float) -> None:
        stuffed = "steel steel garden stake stake stake stake post post metal metal number"
        assert self.worth(feedback, stuffed) < honest
        assert one(feedback, stuffed).rules < 0.3

    def test_one_broad_word_that_finds_everything(self, feedback: Feedback, honest: float) -> None:
        assert self.worth(feedback, "white") < honest
        assert one(feedback, "white").rules == 0.0

    def test_a_harmless_word_behind_the_query(self, feedback: Feedback, honest: float) -> None:
        got = one(feedback, "stel stake number")
        assert got.relevance == got.productivity == got.discovery == got.rules == 0.0
        assert self.worth(feedback, "stel stake number") < honest

    def test_being_shown_against_the_verdict(self, feedback: Feedback) -> None:
        # It finds nothing that was asked for: it had better say so itself.
        shown, told = (one(feedback, "white thing", tag=tag) for tag in (True, False))
        assert shown.relevance == shown.rules == 0.0
        assert shown.fused(WEIGHTS) < told.fused(WEIGHTS)

    def test_a_word_that_nothing_holds(self, feedback: Feedback, honest: float) -> None:
        assert one(feedback, "clade steel stake").rules == pytest.approx(2 / 3)
        assert self.worth(feedback, "clade steel stake") < honest

    def test_saying_what_all_say(self, feedback: Feedback, honest: float) -> None:
        assert self.worth(feedback, "steel garden stake", others=7) < honest

    def test_calling_everything_relevant(self, feedback: Feedback) -> None:
        assert one(feedback, "white thing").agreement == 0.0

    def test_calling_nothing_relevant(self, feedback: Feedback, honest: float) -> None:
        silent = one(feedback, "steel garden stake", tag=False).fused(WEIGHTS)
        assert silent < honest


def test_the_judge_is_asked_for_what_was_meant(world: World, judge: Scores) -> None:
    world.misspelt("oack", "oak")
    (got,) = Feedback(world, judge, first=3).reward("oack", [Sample("oak stake", True)])
    assert {query for query, _ in judge.asked} == {"oak"}
    assert got.gain == 1.0
    assert got.increment == 1.0


def test_the_judge_is_asked_once_of_each_pair(feedback: Feedback, judge: Scores) -> None:
    group = [Sample("steel stake", True), Sample("metal garden post", True)]
    feedback.prepare([(QUERY, group)])
    asked = len(judge.asked)
    assert asked == len(set(judge.asked)) > 0
    feedback.reward(QUERY, group)
    assert len(judge.asked) == asked
