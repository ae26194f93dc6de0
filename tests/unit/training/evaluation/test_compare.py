"""The table of ways to rewrite, by hand-worked examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_store.manifest import FilterSpec
from service.filtering.candidates import Scored
from tests.unit.training.worlds import make_world
from training.data.pairs import World
from training.evaluation.compare import (
    CORRECTIONS,
    PLAIN,
    as_markdown,
    baseline_ways,
    plot,
    record,
    way,
    way_of,
)
from training.evaluation.evaluate import Drawn, rows_of
from training.evaluation.measure import Measured

QUERIES = ("nial", "drill")


@pytest.fixture
def world() -> World:
    """A misspelt query that finds nothing, and one that finds half of what it needs."""
    titles = {"n1": "steel nail", "n2": "brass nail", "d1": "power drill", "d2": "boring machine"}
    grades = {"nial": {"n1": 3.0, "n2": 3.0}, "drill": {"d1": 3.0, "d2": 3.0}}
    return make_world(titles, {**grades, "nail": {"n1": 3.0}}, {"nial": "nail"})


def test_the_plain_query_and_the_oracle_come_first(world: World) -> None:
    ways = baseline_ways(world, QUERIES, {"nothing": lambda _: []})
    assert [w.name for w in ways] == [PLAIN, CORRECTIONS, "nothing"]
    plain, oracle, nothing = ways
    assert [plain.equal[q].recall for q in QUERIES] == [0.0, 0.5]
    assert [oracle.equal[q].recall for q in QUERIES] == [1.0, 0.5]
    assert nothing.less == plain.less


def test_no_way_has_more_than_four_rewrites(world: World) -> None:
    many = way(world, QUERIES, "many", lambda _: ["a", "b", "c", "d", "boring machine"])
    assert many.equal["drill"].rewrites == 4
    assert many.equal["drill"].recall == 0.5


def measured(world: World) -> Measured:
    candidates = {"nial": [Scored("nails", 0.9)], "drill": [Scored("boring machine", 0.9)]}
    drawn = Drawn(candidates, [True, False, False, True], [0.9, 0.1, 0.8, 0.7])
    spec = FilterSpec(max_rewrites=1)
    return Measured(
        "x-1", "0" * 64, drawn, rows_of(world, QUERIES, drawn, spec, [], fold_case=True)
    )


def test_the_table_by_hand(world: World) -> None:
    mine = measured(world)
    found = record(
        world, [*baseline_ways(world, QUERIES, {}), way_of(mine)], [mine], exam="held-out fold"
    )
    text = as_markdown(json.loads(json.dumps(found)))
    everything, misspelled, *_ = text.split("\n\n", 2)[0], text
    assert "All 2 queries:" in everything
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("| searching with"))
    rows = [line for line in lines if line.startswith("| + x-1")]
    assert all(line.count("|") == head.count("|") for line in rows)
    # Of 2 queries, 0.25 to 1 on average: nails for the one, the machine for the other.
    assert "| 1.000 | +0.750 [0.500, 1.000] | 0.0 % |" in rows[0]
    assert "The 1 of them that are misspelled:" in misspelled
    assert "| `x-1` | 4 | 0.750" in text
    plain = next(line for line in lines if line.startswith(f"| {PLAIN}"))
    assert plain.startswith(f"| {PLAIN} | 0.250 |")
    assert plain.count("|") == head.count("|")


def test_the_plot_is_a_picture(world: World, tmp_path: Path) -> None:
    mine = measured(world)
    found = record(world, [*baseline_ways(world, QUERIES, {}), way_of(mine)], [mine], exam="x")
    plot(found, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
