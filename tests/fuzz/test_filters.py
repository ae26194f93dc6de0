"""Whatever a model writes, and whatever is asked: only fit candidates come out."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from model_store.manifest import FilterSpec
from model_store.text import MAX_QUERY_CHARS, normalise
from service.filtering.candidates import Scored, Verdict
from service.filtering.filters import CandidateFilter
from service.filtering.guards import Brands, quantities, sizes
from service.filtering.words import words
from service.overrides.entries import BlockTerm, read_entry
from service.overrides.table import Table
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import digits, encodable, shopping, texts
from tests.support.overrides import term

BRANDS = ("dewalt", "black & decker", "3m", "o'keeffe's", "Ünique")

relevances = st.none() | st.floats(0, 1)
pieces = st.sampled_from(
    ["steel", "stake", "2x4", "12", "13", "3/4", "in", "xl", "queen", "dewalt", "de walt", "black",
     "and", "decker", "3m", "red", "reds", "20v", "size", "m", "1,000", ".5"]
)  # fmt: skip
phrases = st.lists(pieces, max_size=7).map(" ".join)
queries = phrases | encodable | digits | shopping
scored = st.builds(Scored, phrases | encodable | digits, relevances, st.integers(1, 9))
candidates = st.lists(scored, max_size=10)


def make(*, fold_case: bool, min_relevance: float = 0.5, max_rewrites: int = 4) -> CandidateFilter:
    spec = FilterSpec(min_relevance=min_relevance, max_rewrites=max_rewrites)
    return CandidateFilter(spec, fold_case=fold_case, brands=BRANDS)


@fuzzed
@given(queries, candidates, st.booleans(), st.none() | st.integers(1, 32), relevances)
def test_only_candidates_that_are_fit_are_chosen(
    query: str, given_: list[Scored], fold_case: bool, limit: int | None, threshold: float | None
) -> None:
    query = normalise(query, fold_case=fold_case)[:MAX_QUERY_CHARS]
    filter_ = make(fold_case=fold_case)
    judged = filter_.judge(query, given_)
    chosen = filter_.select(judged, max_rewrites=limit, min_relevance=threshold)
    possible = {normalise(one.text, fold_case=fold_case) for one in given_}
    assert len(judged) == len(given_) == len(chosen.accepted) + len(chosen.rejected)
    assert len(chosen.accepted) <= (4 if limit is None else limit)
    for one in chosen.accepted:
        assert one.text in possible
        assert one.text
        assert len(one.text) <= MAX_QUERY_CHARS
        assert "\ufffd" not in one.text
        assert one.relevance is not None
        assert one.relevance >= (0.5 if threshold is None else threshold)
    assert not [one for one in chosen.rejected if one.verdict is Verdict.ACCEPTED]


@fuzzed
@given(
    st.lists(st.integers(13, 9999).map(str), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(13, 9999).map(str), max_size=3),
)
def test_a_number_that_is_lost_or_added_is_never_accepted(
    asked: list[str], said: list[str]
) -> None:
    query, candidate = "hose " + " hose ".join(asked), "pipe " + " pipe ".join(said)
    [judged] = make(fold_case=True).judge(query, [Scored(candidate, 0.9)])
    assert (judged.verdict is Verdict.LOST_NUMBER) == (not set(asked) <= set(said))
    assert (judged.verdict is Verdict.ADDED_NUMBER) == (set(asked) < set(said))


@fuzzed
@given(st.sampled_from(BRANDS), phrases, phrases)
def test_a_brand_that_is_lost_is_never_accepted(brand: str, around: str, candidate: str) -> None:
    query = normalise(f"{around} {brand} hammer", fold_case=True)
    [judged] = make(fold_case=True).judge(query, [Scored(candidate, 0.9)])
    if judged.verdict is Verdict.ACCEPTED:
        key = "".join(w for w in words(brand) if w != "and")
        assert key in "".join(w for w in words(candidate) if w != "and")


@fuzzed
@given(st.sampled_from(["xl", "queen", "king", "twin"]), phrases)
def test_a_size_that_is_lost_is_never_accepted(size: str, candidate: str) -> None:
    [judged] = make(fold_case=True).judge(f"{size} thing", [Scored(candidate, 0.9)])
    if judged.verdict is Verdict.ACCEPTED:
        assert size in candidate.split()


@fuzzed
@given(
    st.lists(st.text("abs- .'é", min_size=1, max_size=8), min_size=1, max_size=5),
    st.lists(st.text("abs- .'éBS", max_size=16), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_a_blocked_term_never_comes_out(terms: list[str], said: list[str], limit: int) -> None:
    entries = {}
    for i, text in enumerate(terms):
        if words(text):
            entry = read_entry(term(text, id=f"t{i}", author="ada"))
            assert isinstance(entry, BlockTerm)
            entries[entry.subject] = entry
    table = Table([*entries.values()])

    def blocked(text: str) -> bool:
        return any(table.terms_in(words(text), 0.0))

    filter_ = make(fold_case=True, min_relevance=0.0)
    judged = filter_.judge("query", [Scored(text, 0.9) for text in said])
    chosen = filter_.select(judged, max_rewrites=limit, blocked=blocked)
    pinned = filter_.pinned(said, blocked=blocked)
    for one in (*chosen.accepted, *pinned.accepted):
        spoken = f" {' '.join(words(one.text))} "
        assert not [subject for subject in entries if f" {subject} " in spoken]


@fuzzed
@given(texts)
def test_guards_take_any_text(text: str) -> None:
    quantities(text)
    sizes(text)
    Brands(BRANDS).found(text)
    assert all(part and not re.search(r"\s", part) for part in words(text))


@fuzzed
@given(st.lists(texts, max_size=4), texts)
def test_any_text_may_be_a_brand(names: list[str], text: str) -> None:
    brands = Brands(names)
    assert brands.keeps(text, text)
    for name in names:
        assert brands.keeps(name, name)
