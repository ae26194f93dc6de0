"""Choosing a threshold by a shop's own search, with candidates that a test knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_store.manifest import FilterSpec
from service.filtering.candidates import Scored
from service.filtering.filters import CandidateFilter
from tests.unit.training.adapt.shops import groceries, write
from training.adapt.catalogue import Catalogue, read_catalogue
from training.adapt.queries import CLEAN, MISSPELT, KnownQuery, depth_of, made_queries
from training.adapt.trial import Answers, Journal, Judge, Setting, choose, halves
from training.data.search import SearchIndex


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return read_catalogue(write(tmp_path / "p.csv", groceries()))


@pytest.fixture
def index(catalogue: Catalogue) -> SearchIndex:
    return SearchIndex(catalogue.titles)


def test_made_queries_mean_the_products_that_hold_their_words(
    catalogue: Catalogue, index: SearchIndex
) -> None:
    queries = made_queries(catalogue, index, 40)
    assert queries == made_queries(catalogue, index, 40)
    assert {MISSPELT, CLEAN} <= {one.kind for one in queries}
    for one in queries:
        assert one.relevant == set(index.holding(one.meant, 100))
        assert 0 < len(one.relevant) <= depth_of(len(catalogue)) == 10
        assert (one.text == one.meant) == (one.kind == CLEAN)
    choosing, reporting = halves(queries)
    assert choosing
    assert reporting
    assert not {q.meant for q in choosing} & {q.meant for q in reporting}


@pytest.mark.parametrize(
    ("right", "wrong", "chosen"),
    [
        # Right rewrites below the version's threshold are let in, down to the lowest allowed.
        (0.8, 0.3, Setting(0.8, 1)),
        # Where wrong ones are tagged as highly, the threshold stays, because they harm.
        (0.8, 0.95, Setting(0.95, 1)),
        # What is far below stays out on made queries, and may come in where products are known.
        (0.55, 0.3, Setting(0.85, 2)),
    ],
)
def test_the_setting_that_gains_without_harm(
    right: float, wrong: float, chosen: Setting, index: SearchIndex
) -> None:
    judge = Judge(index, 10)
    meant = frozenset(index.holding("quinoa flakes", 10)[:6])
    typed = KnownQuery("keenwah", meant, MISSPELT, "quinoa flakes")
    plain = KnownQuery("avocado oil", frozenset(index.search("avocado oil", 10)), CLEAN, "x")
    found = {
        typed.text: [Scored("quinoa flakes", right)],
        plain.text: [Scored("soft drink", wrong), Scored("kombucha", wrong)],
    }
    answers = Answers(found, CandidateFilter(FilterSpec(), fold_case=True))
    own = Setting(0.85, 2)
    assert choose(judge, [typed, plain], answers, own, made=True) == chosen
    if right == 0.55:
        assert choose(judge, [typed, plain], answers, own, made=False).min_relevance <= right


def test_what_was_drawn_before_a_kill_is_kept_without_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "work" / "adapted.jsonl"
    Journal(path).add("soda", [Scored("soft drink", 0.9, 4), Scored("pop", None)])
    path.write_bytes(path.read_bytes() + b'\n["cola", [["co')
    again = Journal(path)
    assert again.found == {"soda": [Scored("soft drink", 0.9, 4), Scored("pop", None)]}
    again.add("cola", [])
    assert Journal(path).found.keys() == {"soda", "cola"}
