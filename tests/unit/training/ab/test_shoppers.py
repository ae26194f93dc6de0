from __future__ import annotations

from collections import Counter

import polars as pl
import pytest

from tests.unit.training.worlds import make_tables, shop_tables
from training.ab.errors import ExperimentError
from training.ab.shoppers import Tail, draw_shoppers, held_out_traffic, is_control, tail_of
from training.data.folds import HELD_OUT, fold_of
from training.data.pairs import World
from training.data.schema import Tables


def test_traffic_is_held_out_and_graded() -> None:
    tables = shop_tables()
    world = World(tables)
    traffic = held_out_traffic(tables, world)
    assert traffic
    assert all(fold_of(world.canonical[q]) == HELD_OUT and world.grades[q] for q in traffic)
    others = set(world.canonical) - set(traffic)
    assert all(fold_of(world.canonical[q]) != HELD_OUT for q in others)


def test_spellings_of_one_query_are_added_up() -> None:
    query = next(q for q in ("a rug", "b rug", "c rug", "d rug", "e rug", "f rug", "g rug",
                             "h rug", "i rug", "j rug", "k rug", "l rug", "m rug", "n rug")
                 if fold_of(q) == HELD_OUT)  # fmt: skip
    tables = make_tables({"p": "rug"}, {query: {"p": 3.0}})
    queries = pl.DataFrame(
        [(query, query, 5), (query.upper(), query, 7)], schema=tables.queries.schema, orient="row"
    )
    tables = Tables(
        tables.catalogue, queries, tables.judgements, tables.interactions, tables.rewrites
    )
    assert held_out_traffic(tables, World(tables)) == {query: 12}


def test_without_held_out_grades_nobody_can_shop() -> None:
    query = next(q for q in ("a rug", "b rug", "c rug") if fold_of(q) != HELD_OUT)
    tables = make_tables({"p": "rug"}, {query: {"p": 3.0}})
    with pytest.raises(ExperimentError, match="bring more queries"):
        held_out_traffic(tables, World(tables))


def test_shoppers_follow_from_the_seed() -> None:
    traffic = {"rug": 3, "lamp": 1}
    assert draw_shoppers(traffic, 50, 7) == draw_shoppers(traffic, 50, 7)
    assert draw_shoppers(traffic, 50, 7) != draw_shoppers(traffic, 50, 8)
    # More shoppers are the same shoppers and more.
    assert draw_shoppers(traffic, 80, 7)[:50] == draw_shoppers(traffic, 50, 7)
    assert len({s.unit for s in draw_shoppers(traffic, 80, 7)}) == 80


def test_searches_are_drawn_by_how_often_they_are_asked() -> None:
    shoppers = draw_shoppers({"rug": 3, "lamp": 1}, 3000, 7, max_searches=3)
    sizes = Counter(len(s.queries) for s in shoppers)
    assert set(sizes) == {1, 2, 3}
    assert all(abs(n - 1000) < 130 for n in sizes.values())
    asked = Counter(q for s in shoppers for q in s.queries)
    assert asked["rug"] / asked.total() == pytest.approx(0.75, abs=0.03)


def test_the_control_is_the_share_that_was_asked_for() -> None:
    units = [f"u{i}" for i in range(5000)]
    for share in (0.0, 0.2, 0.5):
        found = sum(is_control(u, share, 7) for u in units) / 5000
        assert found == pytest.approx(share, abs=0.03)
    assert [is_control(u, 0.5, 7) for u in units] != [is_control(u, 0.5, 8) for u in units]
    # A larger share keeps whoever was in it.
    assert all(is_control(u, 0.5, 7) for u in units if is_control(u, 0.2, 7))


def test_the_long_tail_by_counts_else_by_words() -> None:
    counted = tail_of({"rug": 50, "oak lamp": 2, "tin": 2, "a b c d": 9})
    # The median of 2, 2, 9 and 50 is 5.5.
    assert counted == Tail("queries that the data counts at most 5 times", frozenset(
        {"oak lamp", "tin"}))  # fmt: skip
    assert tail_of({"rug": 1, "long oak table lamp": 1}) == Tail(
        "queries of 4 words or more", frozenset({"long oak table lamp"})
    )
