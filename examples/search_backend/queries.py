"""What other engines are asked, with rewrites: bodies of requests, as plain data.

docs/search-backends.md shows each of these, and says which release of which engine takes it. The
field that is searched is called ``title``. Without rewrites each body is a search for the query.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from examples.search_backend.fusion import RRF_K, weight
from service.client import Rewrite

Body = dict[str, Any]


def _weighted(query: str, rewrites: Sequence[Rewrite]) -> list[tuple[str, float]]:
    return [(query, 1.0), *((one.text, weight(one)) for one in rewrites)]


def _match(text: str, boost: float = 1.0) -> Body:
    fields: Body = {"query": text}
    if boost != 1.0:
        fields["boost"] = boost
    return {"match": {"title": fields}}


def multi_search(query: str, rewrites: Sequence[Rewrite], index: str, size: int = 100) -> str:
    """Elasticsearch, OpenSearch: lines of ``POST /_msearch``, one search for each text.

    The rankings that come back are fused by the caller, as :mod:`examples.search_backend.fusion`
    does.
    """
    lines: list[Body] = []
    for text, _weight in _weighted(query, rewrites):
        lines += [{"index": index}, {"query": _match(text), "size": size, "_source": False}]
    return "".join(json.dumps(line) + "\n" for line in lines)


def bool_should(query: str, rewrites: Sequence[Rewrite], size: int = 100) -> Body:
    """Elasticsearch, OpenSearch: one search whose score is the sum over the texts."""
    clauses = [_match(*one) for one in _weighted(query, rewrites)]
    return {"query": {"bool": {"should": clauses, "minimum_should_match": 1}}, "size": size}


def rrf_retriever(query: str, rewrites: Sequence[Rewrite], size: int = 100) -> Body:
    """Elasticsearch: weighted reciprocal rank fusion by the engine."""
    if not rewrites:
        return {"retriever": {"standard": {"query": _match(query)}}, "size": size}
    retrievers = [
        {"retriever": {"standard": {"query": _match(text)}}, "weight": share}
        for text, share in _weighted(query, rewrites)
    ]
    rrf = {"retrievers": retrievers, "rank_constant": RRF_K, "rank_window_size": size}
    return {"retriever": {"rrf": rrf}, "size": size}


MAX_HYBRID = 5
"""Most clauses of OpenSearch's hybrid query; what Solr combines by default, too."""


def hybrid(query: str, rewrites: Sequence[Rewrite], size: int = 100) -> Body:
    """OpenSearch: the same, with the weights in a pipeline that goes with the request.

    The engine wants weights that add up to 1; only their ratios matter for the order.
    """
    texts = _weighted(query, rewrites)[:MAX_HYBRID]
    total = sum(share for _text, share in texts)
    shares = [round(share / total, 4) for _text, share in texts]
    shares[0] = round(1.0 - sum(shares[1:]), 4)
    combination = {"technique": "rrf", "rank_constant": RRF_K, "parameters": {"weights": shares}}
    processor = {"score-ranker-processor": {"combination": combination}}
    return {
        "query": {"hybrid": {"queries": [_match(text) for text, _share in texts]}},
        "search_pipeline": {"phase_results_processors": [processor]},
        "size": size,
    }


def solr_bool(query: str, rewrites: Sequence[Rewrite], size: int = 100) -> Body:
    """Solr: one search whose score is the sum over the texts, in the JSON Query DSL."""

    def edismax(text: str) -> Body:
        return {"edismax": {"query": text, "qf": "title", "mm": "1"}}

    clauses = [edismax(query)]
    clauses += [
        {"boost": {"b": str(share), "query": edismax(text)}}
        for text, share in _weighted(query, rewrites)[1:]
    ]
    return {"query": {"bool": {"should": clauses}}, "limit": size, "fields": "id,score"}


def solr_combined(query: str, rewrites: Sequence[Rewrite], size: int = 100) -> Body:
    """Solr: reciprocal rank fusion by the engine, which has no weights."""
    texts = [query, *(one.text for one in rewrites)][:MAX_HYBRID]
    names = [f"text{i}" for i in range(len(texts))]
    queries = {
        name: {"edismax": {"query": text, "qf": "title", "mm": "1"}}
        for name, text in zip(names, texts, strict=True)
    }
    combiner = {
        "combiner": True,
        "combiner.query": names,
        "combiner.algorithm": "rrf",
        "combiner.rrf.k": RRF_K,
    }
    return {"queries": queries, "limit": size, "fields": "id,score", "params": combiner}


def vespa(query: str, rewrites: Sequence[Rewrite], size: int = 100) -> Body:
    """Vespa: all words of all texts, with the weights as those of the words, in percent."""
    texts = _weighted(query, rewrites)
    branches = " or ".join(
        f"weakAnd({', '.join(_word(word, share) for word in text.split())})"
        for text, share in texts
    )
    return {
        "yql": f"select product_id, title from product where {branches}",  # noqa: S608 - words are quoted
        "ranking.profile": "rewrites",
        "hits": size,
    }


def _word(word: str, share: float) -> str:
    quoted = json.dumps(word, ensure_ascii=False)
    return f"title contains ({{weight: {max(1, round(100 * share))}}}{quoted})"
