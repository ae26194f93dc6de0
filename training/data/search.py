"""The search engine in the loop: BM25 over product titles, and rank fusion.

The index is tantivy's (BM25 with k1 = 1.2, b = 0.75), analysed as a plain search backend would:
split at non-alphanumerics, lower case, English stop words out, English stemmer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

import tantivy

RRF_K = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""
REWRITE_WEIGHT = 0.6
"""Weight of a rewrite's ranking beside the query's own weight of 1 that we recommend.

A rewrite adds what the query alone does not find, and should not push out what it does: at equal
weights half of the budget is the rewrite's. Chosen on the development fold.
"""
DEPTH = 100
"""Budget of products per search, for the plain query and for a fusion alike."""


@cache
def _analyzer() -> tantivy.TextAnalyzer:
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(40))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.stopword("english"))
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


@lru_cache(maxsize=1 << 16)
def stems(text: str) -> tuple[str, ...]:
    """The index terms of ``text``, in order, each once."""
    return tuple(dict.fromkeys(_analyzer().analyze(text)))


class SearchIndex:
    """A BM25 index over titles.

    Args:
        titles: product id -> title.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._ids = list(titles)
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("row", stored=False, indexed=False, fast=True)
        builder.add_text_field("title", tokenizer_name="title", index_option="freq")
        self._schema = builder.build()
        index = tantivy.Index(self._schema)
        index.register_tokenizer("title", _analyzer())
        # One thread makes one segment: term statistics, and so scores, do not depend on timing.
        writer = index.writer(128_000_000, 1)
        for row, title in enumerate(titles.values()):
            writer.add_document(tantivy.Document(row=row, title=title))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._searcher = index.searcher()

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, text: str, depth: int = DEPTH) -> list[str]:
        """Ids of the best ``depth`` products for ``text``, best first; any term may match."""
        clauses = [
            (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "title", term))
            for term in stems(text)
        ]
        if not clauses:
            return []
        query = tantivy.Query.boolean_query(clauses)
        hits = self._searcher.search(query, depth, count=False).hits
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        return [self._ids[row] for row in rows]

    def holding(self, text: str, most: int) -> list[str]:
        """Ids of up to ``most`` products whose titles hold every term of ``text``."""
        query = self._all_of(text)
        if query is None:
            return []
        hits = self._searcher.search(query, most, count=False).hits
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        return [self._ids[row] for row in rows]

    def rarest_term(self, text: str) -> int:
        """Number of titles that hold the rarest term of ``text``; 0 if a term is in none."""
        terms = stems(text)
        return min((self._searcher.doc_freq("title", t) for t in terms), default=0)

    def matches_all(self, text: str) -> int:
        """How many titles hold every term of ``text``."""
        query = self._all_of(text)
        return 0 if query is None else int(self._searcher.search(query, 1).count or 0)

    def _all_of(self, text: str) -> tantivy.Query | None:
        clauses = [
            (tantivy.Occur.Must, tantivy.Query.term_query(self._schema, "title", term))
            for term in stems(text)
        ]
        return tantivy.Query.boolean_query(clauses) if clauses else None


def fuse(
    rankings: Sequence[Sequence[str]],
    depth: int = DEPTH,
    k: int = RRF_K,
    *,
    weights: Sequence[float] | None = None,
) -> list[str]:
    """Reciprocal rank fusion: score(d) = sum over rankings of weight / (k + rank), rank from 1.

    Ties keep the order of first appearance, so that the first ranking (the query's own) wins.

    Args:
        rankings: product ids, best first; the query's own ranking first.
        depth: products in the fusion.
        k: the constant.
        weights: one for each ranking; default: all equal.
    """
    scores: dict[str, float] = defaultdict(float)
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, product in enumerate(ranking, start=1):
            scores[product] += weight / (k + rank)
    return sorted(scores, key=scores.__getitem__, reverse=True)[:depth]


def recall(ranking: Sequence[str], relevant: frozenset[str] | set[str]) -> float:
    """Share of ``relevant`` found in ``ranking``; ``relevant`` must not be empty."""
    return len(relevant.intersection(ranking)) / len(relevant)
