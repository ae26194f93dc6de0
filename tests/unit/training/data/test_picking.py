"""Which queries are aligned on."""

from __future__ import annotations

from collections import Counter

from tests.unit.training.worlds import make_world
from training.data.pairs import World
from training.data.picking import pick_prompts, pick_queries


def world() -> World:
    """Ten queries that find their product, ten that do not, and one without any."""
    titles = {str(i): f"thing{i}" for i in range(20)}
    grades = {(f"thing{i}" if i < 10 else f"other{i}"): {str(i): 3.0} for i in range(20)}
    return make_world(titles, grades | {"nothing": {}})


def test_most_are_queries_that_miss_something() -> None:
    shop = world()
    chosen = pick_prompts(shop, list(shop.canonical), 8, 0.75, seed=1)
    assert len(chosen) == 8
    assert sum(query.startswith("other") for query in chosen) == 6
    assert chosen == pick_prompts(shop, list(shop.canonical), 8, 0.75, seed=1)
    assert chosen != pick_prompts(shop, list(shop.canonical), 8, 0.75, seed=2)


def test_too_few_are_used_again_equally_often() -> None:
    shop = world()
    counts = Counter(pick_prompts(shop, list(shop.canonical), 40, 0.5, seed=1))
    assert set(counts.values()) == {2}
    assert len(counts) == 20
    assert "nothing" not in counts


def test_one_kind_alone_will_do() -> None:
    shop = world()
    assert len(pick_prompts(shop, ["other15", "other16"], 5, 0.75, seed=1)) == 5
    assert len(pick_prompts(shop, ["thing1"], 5, 0.75, seed=1)) == 5


def test_samples_are_of_queries_with_something_to_find() -> None:
    shop = world()
    assert "nothing" not in pick_queries(shop, list(shop.canonical), 100, seed=0)
