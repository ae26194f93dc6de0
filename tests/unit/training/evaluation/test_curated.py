"""The exam on curated pairs."""

from __future__ import annotations

import pytest

from training.data.curated_pairs import CuratedQuery, Rewrite
from training.evaluation.curated import SWAPPED, figures, pairs_to_judge, query_blind, written

QUERIES = [
    CuratedQuery("couch", "home", (Rewrite("sofa", "synonym"),), (Rewrite("touch", "confusable"),)),
    CuratedQuery("lamp", "home", (Rewrite("light", "synonym"),), (Rewrite("lamb", "confusable"),)),
    CuratedQuery("laptop", "tech", (Rewrite("notebook", "synonym"),), (Rewrite("desk", "type"),)),
]


def test_curated_pairs_come_with_swapped_ones() -> None:
    pairs = pairs_to_judge(QUERIES)
    assert [(p.query, p.rewrite) for p in pairs if p.kind == SWAPPED] == [
        ("couch", "light"),
        ("lamp", "sofa"),
    ]
    assert sum(p.right for p in pairs) == 3
    assert len(pairs) == 8


def test_figures_are_told_by_department_and_kind() -> None:
    pairs = pairs_to_judge(QUERIES)
    told = {"touch": 0.6, "sofa": 0.9, "light": 0.5, "lamb": 0.1, "notebook": 0.3, "desk": 0.4}
    found = figures(pairs, [0.0 if p.kind == SWAPPED else told[p.rewrite] for p in pairs])
    assert found["departments"] == {"home": 0.75, "tech": 0.0}
    assert found["swapped"] == 1.0
    assert found["curated"]["pairs"] == 6
    assert found["curated"]["accuracy"][0] == pytest.approx(4 / 6, abs=1e-4)
    assert found["mean"]["confusable"] == 0.35
    assert found["mean"]["right"] == pytest.approx(0.567)


def test_the_blind_classifier_sees_rewrites_alone() -> None:
    style = [
        CuratedQuery(
            f"thing {n}",
            "all",
            (Rewrite(f"nice item {n}", "synonym"),),
            (Rewrite(f"wrong stuff {n}", "type"),),
        )
        for n in range(40)
    ]
    assert query_blind(style[:20], pairs_to_judge(style[20:])) == 1.0


def test_what_is_written_is_counted_by_the_labels() -> None:
    queries = [
        *QUERIES,
        CuratedQuery("tabel", "home", (Rewrite("table", "spelling"),), ()),
        CuratedQuery("xqzv", "home", (), (Rewrite("box", "nonsense"),)),
    ]
    answers = {"couch": ["sofas"], "lamp": ["lamb", "torch"], "tabel": ["tables", "table", "desk"]}
    found = written(queries, lambda query: answers.get(query, []))
    assert found == {
        "queries": 4,
        "answered": 0.75,
        "right": 0.5,
        "wrong": pytest.approx(1 / 6, abs=1e-4),
        "misspelled": 1,
        "corrected": 1.0,
        "nonsense": 0.0,
    }
