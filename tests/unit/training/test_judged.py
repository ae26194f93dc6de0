"""Judged results on a catalogue that can be searched by eye."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tests.unit.training.worlds import make_world
from training.judge import Pair
from training.judged import Judged, hit_rate, judge_results, summarise_judged

SCORES = {"oak ladder": 0.9, "pine ladder": 0.5, "oak table": 0.1}
WORLD = make_world(
    {"a": "oak ladder", "b": "pine ladder", "c": "oak table"},
    {"ladder": {"a": 3.0, "c": 2.67, "b": 2.33}, "stairs": {"a": 3.0}},
)


class Recorder:
    """Scores titles by the table above and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[Pair]] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        self.calls.append(list(pairs))
        return [SCORES[title] for _, title in pairs]


class TestJudgeResults:
    def test_by_hand(self) -> None:
        found = judge_results(Recorder(), WORLD, {"ladder": ["table", "oak"]})
        # "table" finds c (0.1); "oak" finds a and c (mean 0.5); the query a and b (0.7).
        assert found["ladder"].relevance == pytest.approx((0.1 + 0.5) / 2)
        assert found["ladder"].plain == pytest.approx(0.7)
        # Engaged are a and c, and the rewrites find both.
        assert (found["ladder"].hits, found["ladder"].engaged) == (2, 2)

    def test_results_are_judged_for_the_original_query_and_once(self) -> None:
        judge = Recorder()
        judge_results(judge, WORLD, {"ladder": ["oak", "oak table", "pine"]})
        (pairs,) = judge.calls
        assert sorted(pairs) == sorted(("ladder", title) for title in SCORES)

    def test_only_the_first_results_are_judged(self) -> None:
        judge = Recorder()
        found = judge_results(judge, WORLD, {"ladder": ["oak ladder"]}, first=1)
        assert found["ladder"].relevance == pytest.approx(0.9)
        # Hits are counted among all results: "oak ladder" finds c too.
        assert found["ladder"].hits == 2

    def test_no_rewrites(self) -> None:
        found = judge_results(Recorder(), WORLD, {"ladder": []})
        assert found["ladder"].relevance is None
        assert (found["ladder"].hits, found["ladder"].engaged) == (0, 2)

    def test_nothing_found(self) -> None:
        found = judge_results(Recorder(), WORLD, {"stairs": ["zzz"]})
        assert found["stairs"] == Judged(relevance=None, plain=None, hits=0, engaged=1)

    def test_a_rewrite_that_finds_nothing_is_left_out_of_the_mean(self) -> None:
        found = judge_results(Recorder(), WORLD, {"stairs": ["zzz", "pine"]})
        assert found["stairs"].relevance == pytest.approx(0.5)


class TestSummary:
    def test_by_hand(self) -> None:
        judged = {
            "a": Judged(relevance=0.8, plain=0.6, hits=1, engaged=1),
            "b": Judged(relevance=0.4, plain=0.6, hits=1, engaged=4),
            "c": Judged(relevance=None, plain=0.2, hits=0, engaged=0),
            "d": Judged(relevance=0.9, plain=None, hits=0, engaged=0),
        }
        figures = summarise_judged(judged, list(judged))
        assert figures["judged"] == 2
        assert figures["relevance"][0] == pytest.approx(0.6)
        assert figures["plain_relevance"] == pytest.approx([0.6, 0.6, 0.6])
        assert figures["relevance_change"] == pytest.approx([0.0, -0.2, 0.2])
        assert figures["hit_rate"][0] == pytest.approx(2 / 5)

    def test_hit_rate_interval(self) -> None:
        # Whichever two of the two queries are drawn: 1/1, 1/4 or 2/5.
        found = hit_rate([1, 1], [1, 4])
        assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.25, 1.0))

    def test_nothing_engaged(self) -> None:
        assert math.isnan(hit_rate([0], [0]).mean)
        assert math.isnan(hit_rate([], []).mean)
