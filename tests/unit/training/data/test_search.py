from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.search import SearchIndex, fuse, recall, stems

TITLES = {
    "a": "steel garden stake",
    "b": "steel steel steel",
    "c": "wooden garden stake with a very long title that goes on and on",
    "d": "Café table",
}


@pytest.fixture(scope="module")
def index() -> SearchIndex:
    return SearchIndex(TITLES)


def bm25(tf: int, length: int, average: float, documents: int, holding: int) -> float:
    """Textbook BM25, k1 = 1.2 and b = 0.75."""
    idf = math.log(1 + (documents - holding + 0.5) / (holding + 0.5))
    return idf * tf * 2.2 / (tf + 1.2 * (1 - 0.75 + 0.75 * length / average))


def test_best_first(index: SearchIndex) -> None:
    assert index.search("steel stake") == ["a", "b", "c"]
    assert index.search("steel stake", depth=1) == ["a"]
    assert len(index) == 4


def test_the_order_is_that_of_bm25() -> None:
    titles = {
        "once": "hammer nail wood",
        "twice": "hammer hammer wood",
        "long": "hammer nail wood bolt screw glue paint saw",
        "rare": "anvil nail wood",
    }
    lengths = {name: len(title.split()) for name, title in titles.items()}
    average = sum(lengths.values()) / 4
    scores = {
        "once": bm25(1, 3, average, 4, 3),
        "twice": bm25(2, 3, average, 4, 3),
        "long": bm25(1, 8, average, 4, 3),
        "rare": bm25(1, 3, average, 4, 1),
    }
    expected = sorted(scores, key=scores.__getitem__, reverse=True)
    assert expected[0] == "rare"
    assert SearchIndex(titles).search("hammer anvil") == expected


def test_case_inflection_and_punctuation_do_not_matter(index: SearchIndex) -> None:
    assert index.search("STAKES, gardens!") == index.search("garden stake")
    assert index.search("café") == ["d"]


@pytest.mark.parametrize(
    "text", ["", "   ", "!!!", "the of and", "unheard of", "日本語", "\U0001f600"]
)
def test_a_query_without_a_known_word_finds_nothing(index: SearchIndex, text: str) -> None:
    assert index.search(text) == []
    assert index.matches_all(text) == 0
    assert index.rarest_term(text) == 0


def test_an_empty_index_finds_nothing() -> None:
    assert SearchIndex({}).search("x") == []


def test_query_syntax_is_only_text(index: SearchIndex) -> None:
    assert index.search('title:"stake" AND NOT steel*') == index.search("title stake not steel")


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_can_be_searched_for(text: str) -> None:
    index = SearchIndex({"a": "x y", "b": text})
    assert set(index.search(text)) <= {"a", "b"}


def test_counts_of_terms(index: SearchIndex) -> None:
    assert index.matches_all("garden stakes") == 2
    assert index.matches_all("garden steel") == 1
    assert index.rarest_term("garden steel wooden") == 1
    assert index.rarest_term("garden stake") == 2


def test_stems_are_in_order_and_each_once() -> None:
    assert stems("Running the hoses, running the HOSE") == ("run", "hose")


def test_fusion_by_hand() -> None:
    # With 1/61 = 0.016393, 1/62 = 0.016129 and 1/63 = 0.015873, "x" gets 0.016393 + 0.015873
    # = 0.032266 and "y" 0.016129 + 0.016393 = 0.032522; "w" is second once, "z" third once.
    assert fuse([["x", "y", "z"], ["y", "w", "x"]]) == ["y", "x", "w", "z"]


def test_ties_go_to_the_first_ranking() -> None:
    assert fuse([["x"], ["y"]]) == ["x", "y"]
    assert fuse([["y"], ["x"]]) == ["y", "x"]
    assert fuse([["a", "b"], ["b", "a"]]) == ["a", "b"]
    assert fuse([["a", "b", "c"], ["d", "e", "f"]], depth=4) == ["a", "d", "b", "e"]


def test_fusion_keeps_to_its_budget() -> None:
    first = [f"q{i}" for i in range(100)]
    second = [f"r{i}" for i in range(100)]
    fused = fuse([first, second])
    assert len(fused) == 100
    assert set(fused) == set(first[:50]) | set(second[:50])
    assert fuse([first]) == first
    assert fuse([]) == []


def test_a_small_k_makes_first_places_count_more() -> None:
    rankings = [["a", "b", "c"], ["d", "b", "c"]]
    assert fuse(rankings)[0] == "b"
    assert fuse(rankings, k=0)[0] == "a"  # 1/1 against 1/2 + 1/2, and the tie goes to the first


def test_less_weight_takes_fewer_places() -> None:
    first = [f"q{i}" for i in range(100)]
    second = [f"r{i}" for i in range(100)]
    fused = fuse([first, second], weights=[1.0, 0.6])
    # r at rank s comes before q at rank p if 0.6 / (60 + s) > 1 / (60 + p): s < 0.6 p - 24. So the
    # 100 places hold the first 77 of the query and the first 23 of the rewrite (0.6 x 78 - 24).
    assert sum(p.startswith("r") for p in fused) in (22, 23)
    assert fused[:41] == first[:41], "the first of the rewrite is worth 0.6 / 61, as rank 42"
    assert fuse([first, second], weights=[1.0, 1.0]) == fuse([first, second])
    with pytest.raises(ValueError, match="shorter"):
        fuse([first, second], weights=[1.0])


def test_recall() -> None:
    assert recall(["a", "b", "c"], {"a", "z"}) == 0.5
    assert recall([], frozenset({"a"})) == 0.0
    with pytest.raises(ZeroDivisionError):
        recall(["a"], frozenset())
