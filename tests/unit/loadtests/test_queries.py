from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loadtests.queries import Queries, known_queries
from model_store.text import MAX_QUERY_CHARS, normalise

KNOWN = ("steel stake", "ceiling fan with light", "vinyl floor", "deck screws 3 in")


def test_popularity_follows_zipf() -> None:
    known = [f"query {i}" for i in range(100)]
    queries = Queries(known, seed=1)
    drawn = Counter(queries.popular() for _ in range(20_000))
    weights = [1 / (rank + 1) for rank in range(100)]
    for rank in (0, 1, 9):
        expected = 20_000 * weights[rank] / sum(weights)
        assert drawn[known[rank]] == pytest.approx(expected, rel=0.2)


def test_unseen_queries_are_new_to_any_cache() -> None:
    queries = Queries(KNOWN, seed=2)
    unseen = [queries.unseen() for _ in range(500)]
    forms = {normalise(query, fold_case=True) for query in unseen}
    assert len(forms) == 500
    assert not forms & {normalise(query, fold_case=True) for query in KNOWN}
    assert all(1 <= len(form) <= MAX_QUERY_CHARS for form in forms)
    words = {word for query in KNOWN for word in query.split()}
    assert all(set(query.split()) <= words for query in unseen[:20])


def test_the_same_seed_draws_the_same() -> None:
    def drawn(seed: int) -> list[str]:
        queries = Queries(KNOWN, seed=seed)
        return [queries.popular() for _ in range(20)] + [queries.unseen() for _ in range(20)]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_without_data_there_is_a_list(tmp_path: Path) -> None:
    found, source = known_queries(tmp_path)
    assert source == "a built-in list"
    assert len(found) == len(set(found)) >= 200
    assert known_queries(tmp_path) == (found, source)


def test_with_data_the_queries_are_real(tmp_path: Path) -> None:
    folder = tmp_path / "home_depot"
    folder.mkdir()
    rows = [f'{i},"A title","  Real  query {i} ",2.5' for i in range(60)] + ['60,"A"," ",1.0']
    header = "product_uid,product_title,search_term,relevance"
    (folder / "train.csv").write_text("\n".join([header, *rows]), encoding="latin-1")
    found, source = known_queries(tmp_path)
    assert set(found) == {f"Real query {i}" for i in range(60)}
    assert "Home Depot" in source
