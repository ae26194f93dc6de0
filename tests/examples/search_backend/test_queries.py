"""The shapes of the bodies; docs/search-backends.md shows them, which tests/docs compares."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from examples.search_backend.fusion import weight
from examples.search_backend.queries import (
    MAX_HYBRID,
    bool_should,
    hybrid,
    multi_search,
    rrf_retriever,
    solr_bool,
    solr_combined,
    vespa,
)
from service.client import Rewrite

REWRITES = tuple(Rewrite(f"rewrite {i}", 1 - i / 10) for i in range(8))
ALL: list[Callable[..., Any]] = [
    bool_should,
    hybrid,
    rrf_retriever,
    solr_bool,
    solr_combined,
    vespa,
]


@pytest.mark.parametrize("make", ALL)
def test_each_is_json_with_every_text_that_fits(make: Callable[..., Any]) -> None:
    text = json.dumps(make("some query", REWRITES[:2]))
    words = ("some", "query", "rewrite", "0", "1")
    assert all(word in text for word in words)
    assert json.loads(text) == make("some query", REWRITES[:2])


@pytest.mark.parametrize("make", ALL)
def test_without_rewrites_only_the_query_is_searched_for(make: Callable[..., Any]) -> None:
    text = json.dumps(make("q", ()))
    assert '"q' in text
    assert "rewrite " not in text


def test_one_search_for_each_text() -> None:
    lines = multi_search('5" pipe', REWRITES[:2], "products", size=7).splitlines()
    assert [json.loads(line) for line in lines[::2]] == [{"index": "products"}] * 3
    bodies = [json.loads(line) for line in lines[1::2]]
    assert [one["query"]["match"]["title"]["query"] for one in bodies] == [
        '5" pipe',
        "rewrite 0",
        "rewrite 1",
    ]
    assert {one["size"] for one in bodies} == {7}
    assert multi_search("q", (), "products").endswith("\n")


def test_weights_are_those_of_the_fusion() -> None:
    rrf = rrf_retriever("q", REWRITES)["retriever"]["rrf"]
    assert [one["weight"] for one in rrf["retrievers"]] == [1.0, *map(weight, REWRITES)]
    should = bool_should("q", REWRITES)["query"]["bool"]["should"]
    boosts = [one["match"]["title"].get("boost", 1.0) for one in should]
    assert boosts == [1.0, *map(weight, REWRITES)]
    solr = solr_bool("q", REWRITES)["query"]["bool"]["should"]
    assert [float(one["boost"]["b"]) for one in solr[1:]] == [*map(weight, REWRITES)]


@pytest.mark.parametrize("count", range(len(REWRITES) + 1))
def test_the_weights_of_a_hybrid_query_add_up_to_one(count: int) -> None:
    body = hybrid("q", REWRITES[:count])
    (processor,) = body["search_pipeline"]["phase_results_processors"]
    weights = processor["score-ranker-processor"]["combination"]["parameters"]["weights"]
    clauses = body["query"]["hybrid"]["queries"]
    assert len(weights) == len(clauses) == min(count + 1, MAX_HYBRID)
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert all(0 <= one <= 1 for one in weights)
    shares = [1.0, *map(weight, REWRITES)][: len(weights)]
    assert [one / weights[0] for one in weights] == pytest.approx(shares, abs=1e-3)


def test_solr_combines_no_more_than_it_takes_by_default() -> None:
    body = solr_combined("q", REWRITES)
    assert list(body["queries"]) == body["params"]["combiner.query"]
    assert len(body["queries"]) == MAX_HYBRID


def test_words_cannot_break_out_of_a_vespa_query() -> None:
    yql = vespa('a" or true; \\', [Rewrite("b", 0.001)])["yql"]
    assert r'({weight: 100}"a\"")' in yql
    assert r'({weight: 100}"\\")' in yql
    assert '({weight: 1}"b")' in yql
