from __future__ import annotations

import pytest

from tests.unit.training.worlds import make_world, rooms_world
from training.data.catalogue_pairs import AGREE, DIFFER, FIRST, CatalogueMiner
from training.data.folds import compact
from training.data.pairs import QueryPairs, World, is_echo


@pytest.fixture(scope="module")
def world() -> World:
    return rooms_world()


def mine(world: World, count: int = 12, seed: int = 3, protected: str = "") -> list[QueryPairs]:
    forms = frozenset({compact(protected)} if protected else ())
    return list(CatalogueMiner(world, list(world.canonical), seed, forms).mine(count))


def own(world: World, query: str, text: str) -> float:
    first = set(world.plain(query)[:FIRST])
    return len(first.intersection(world.index.search(text))) / len(first)


def test_labels_say_what_the_search_engine_finds(world: World) -> None:
    pairs = mine(world)
    assert len(pairs) == 12
    for one in pairs:
        assert one.accept
        assert one.reject
        assert not one.write  # the search engine's taste is nothing to learn to write
        assert all(own(world, one.query, s.text) >= AGREE for s in one.accept)
        assert all(own(world, one.query, s.text) <= DIFFER for s in one.reject)


def test_no_pair_is_an_echo_or_given_twice(world: World) -> None:
    for one in mine(world):
        texts = [s.text for s in one.accept + one.reject]
        assert len({compact(t) for t in texts}) == len(texts)
        assert not any(is_echo(one.query, text) for text in texts)


def test_each_query_comes_once_and_the_seed_decides(world: World) -> None:
    pairs = mine(world)
    assert len({compact(one.query) for one in pairs}) == len(pairs)
    assert pairs == mine(world)
    assert pairs != mine(world, seed=4)


def test_protected_forms_are_on_neither_side(world: World) -> None:
    word = mine(world)[0].accept[0].text
    texts = [
        text
        for one in mine(world, protected=word)
        for text in (one.query, *(s.text for s in one.accept + one.reject))
    ]
    assert texts
    assert compact(word) not in {compact(text) for text in texts}


def test_misspelt_queries_are_not_learnt(world: World) -> None:
    texts = {s.text for one in mine(world) for s in one.accept + one.reject}
    assert "hamer" not in texts


def test_a_catalogue_without_pairs_gives_none(world: World) -> None:
    assert list(CatalogueMiner(make_world({"a": "hammer"}, {}), [], 1).mine(5)) == []
    assert list(CatalogueMiner(make_world({}, {}), [], 1).mine(5)) == []
