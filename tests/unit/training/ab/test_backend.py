from __future__ import annotations

import pytest

from tests.unit.training.worlds import make_world
from training.ab.backend import Backend
from training.data.pairs import World


@pytest.fixture
def world() -> World:
    titles = {"h1": "hammer", "h2": "hammer large", "m1": "mallet", "m2": "mallet small big"}
    return make_world(titles, {"hammer": {"h1": 3.0, "m1": 2.33}})


def test_without_rewrites_it_is_the_plain_search(world: World) -> None:
    backend = Backend(world)
    assert backend.page("hammer") == world.plain("hammer") == ["h1", "h2"]


def test_rewrites_are_merged_with_less_weight(world: World) -> None:
    # 1/61 and 1/62 of the query against 0.6/61 and 0.6/62 of the rewrite.
    assert Backend(world).page("hammer", ["mallet"]) == ["h1", "h2", "m1", "m2"]
    # A rewrite that counts more goes first.
    assert Backend(world, weight=1.05).page("hammer", ["mallet"]) == ["m1", "m2", "h1", "h2"]


def test_a_page_has_its_size(world: World) -> None:
    backend = Backend(world, size=3)
    assert backend.page("hammer", ["mallet"]) == ["h1", "h2", "m1"]
    assert Backend(world, size=1).page("hammer") == ["h1"]


def test_a_search_returns_no_more_than_the_budget(world: World) -> None:
    assert Backend(world, depth=1).page("hammer", ["mallet"]) == ["h1"]


def test_products_that_nobody_judged_are_bad(world: World) -> None:
    assert Backend(world).grades("hammer", ["h2", "h1", "m1"]) == [1.0, 3.0, 2.33]
    assert Backend(world).grades("no such query", ["h1"]) == [1.0]


def test_a_judge_grades_what_nobody_judged_once(world: World) -> None:
    asked: list[tuple[str, str]] = []

    def judge(pairs: object) -> list[float]:
        assert isinstance(pairs, list)
        asked.extend(pairs)
        return [0.25] * len(pairs)

    backend = Backend(world, judge=judge)
    for _ in range(2):
        assert backend.grades("hammer", ["h2", "h1"]) == [1.5, 3.0]
    assert asked == [("hammer", "hammer large")]
