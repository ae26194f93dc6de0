from __future__ import annotations

import pytest

from tests.unit.training.worlds import make_world
from training.alignment.selfplay import judge_samples
from training.data.folds import compact
from training.data.pairs import World

# "tool" finds all ten of R; w6 finds six of them, w2 two, and "saw" the one that is not in R.
TITLES = {
    f"r{i}": " ".join(["tool", *(w for w, n in (("w6", 6), ("w5", 5), ("w2", 2)) if i < n)])
    for i in range(10)
} | {"x": "saw", "y": "hidden w6"}


@pytest.fixture
def world() -> World:
    everything = {f"r{i}": 3.0 for i in range(10)}
    return make_world(
        TITLES, {"tool": everything, "gizmo": {"r0": 3.0}, "partly": {"r0": 3.0, "y": 3.0}}
    )


def test_good_bad_grey_and_echo(world: World) -> None:
    judged, counts = judge_samples(world, [("tool", ["w6", "w5", "w2", "saw", "tools", "w6"])])
    (pairs,) = judged
    assert [s.text for s in pairs.accept] == ["w6"]  # keeps 60 %, gains nothing
    assert pairs.write == []
    assert {s.text for s in pairs.reject} == {"w2", "saw"}  # at most 20 %
    # "w5" keeps half: neither; "tools" is an echo; the second "w6" counts once.
    assert counts == {
        "samples": 6, "distinct": 5, "echo": 1, "relevant": 1, "irrelevant": 2, "gain": 0,
    }  # fmt: skip
    assert {s.source for s in pairs.accept + pairs.reject} == {"sample"}


def test_what_gains_comes_first(world: World) -> None:
    world.index.search("w6")
    judged, counts = judge_samples(world, [("gizmo", ["w6", "w2 w5", "saw"])])
    (pairs,) = judged
    # The query finds nothing, so whatever finds its product gains; what finds nothing is no
    # negative, because the query does no better.
    assert {s.text for s in pairs.write} == {"w6", "w2 w5"}
    assert pairs.reject == []
    assert counts["gain"] == 2


def test_what_gains_nothing_is_judged_and_not_written(world: World) -> None:
    many = [f"tool w6 extra{i}" for i in range(9)]
    (pairs,) = judge_samples(world, [("tool", many)])[0]
    assert pairs.write == []
    assert [s.text for s in pairs.accept] == many[:3]


def test_what_gains_is_written_up_to_a_bound(world: World) -> None:
    many = [f"w6 extra{i}" for i in range(9)]
    (pairs,) = judge_samples(world, [("gizmo", many)], max_write=2)[0]
    assert [s.text for s in pairs.write] == many[:2]


def test_protected_text_is_not_learnt(world: World) -> None:
    drawn = [("gizmo", ["w6", "w2 w5"])]
    (pairs,) = judge_samples(world, drawn, frozenset({compact("W6")}))[0]
    assert [s.text for s in pairs.write] == ["w2 w5"]
    (pairs,) = judge_samples(world, drawn, frozenset({compact("w5, w2")}))[0]
    assert [s.text for s in pairs.write] == ["w6"]


def test_rejects_are_bounded(world: World) -> None:
    (pairs,) = judge_samples(world, [("tool", [f"saw{i}" for i in range(9)])])[0]
    assert len(pairs.reject) == 4
    assert pairs.write == []


def test_queries_that_teach_nothing_are_left_out(world: World) -> None:
    judged, counts = judge_samples(world, [("tool", ["tools", "w5"]), ("gizmo", ["saw"])])
    assert judged == []
    assert counts["samples"] == 3


def test_harm_is_a_reject_even_if_it_finds_something() -> None:
    titles = {f"a{i:02}": f"alpha filler {i:02} x" for i in range(60)}
    titles |= {f"b{i:02}": f"beta filler {i:02} x" for i in range(60)}
    titles |= {f"r{i}": f"alpha {'beta' if i < 6 else 'gamma'} r{i} x" for i in range(10)}
    world = make_world(titles, {"alpha": {f"r{i}": 3.0 for i in range(10)}})
    (pairs,) = judge_samples(world, [("alpha", ["beta"])])[0]
    assert [s.text for s in pairs.reject] == ["beta"]
    assert pairs.reject[0].own == 0.6
