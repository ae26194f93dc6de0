"""What a judge says of the products that rewrites find: two figures after BEQUE (arXiv 2311.03758).

* ``relevance``: mean judge score, for the *original* query, of the first ten results of each
  accepted rewrite. It needs no grade, so products that nobody judged count too.
* ``hit_rate``: engaged products (grade >= 2.67, simulated) that the rewrites of their query find,
  as a share of all engaged products of all queries. ``productivity`` is the mean over queries
  instead, in which a query with one engaged product counts as much as one with twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.judge import Pair
from training.metrics import RESAMPLES, Interval, bootstrap
from training.pairs import World
from training.schema import GRADE_ENGAGED

FIRST = 10
"""Results of a search that a shopper looks at."""

Scorer = Callable[[Sequence[Pair]], Sequence[float]]
"""Scores in [0, 1] of (query, product title) pairs, such as :meth:`training.judge.Judge.score`."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What one query's rewrites find.

    Attributes:
        relevance: mean score of the first results of the rewrites, rewrites weighing alike;
            ``None`` if none of them finds anything.
        plain: the same of the query's own first results.
        hits: engaged products that a rewrite finds.
        engaged: engaged products.
    """

    relevance: float | None
    plain: float | None
    hits: int
    engaged: int


def judge_results(
    score: Scorer, world: World, rewrites: Mapping[str, Sequence[str]], first: int = FIRST
) -> dict[str, Judged]:
    """Search with every rewrite and with its query, and have the first results judged.

    Args:
        score: the judge; it is called once, with each pair once.
        world: catalogue, search engine and grades.
        rewrites: accepted rewrites of each normalised query.
        first: results of a search to judge.
    """
    found = {q: [world.index.search(text) for text in texts] for q, texts in rewrites.items()}
    pairs = dict.fromkeys(
        (query, world.titles[product])
        for query, results in found.items()
        for ranking in (world.plain(query), *results)
        for product in ranking[:first]
    )
    scores = dict(zip(pairs, score(list(pairs)), strict=True))

    def mean(query: str, ranking: Sequence[str]) -> float | None:
        values = [scores[query, world.titles[product]] for product in ranking[:first]]
        return sum(values) / len(values) if values else None

    judged = {}
    for query, results in found.items():
        means = [m for ranking in results if (m := mean(query, ranking)) is not None]
        grades = world.grades.get(query, {})
        engaged = {p for p, grade in grades.items() if grade >= GRADE_ENGAGED}
        hits = engaged.intersection(*[set().union(*results)])
        judged[query] = Judged(
            relevance=sum(means) / len(means) if means else None,
            plain=mean(query, world.plain(query)),
            hits=len(hits),
            engaged=len(engaged),
        )
    return judged


def summarise_judged(judged: Mapping[str, Judged], queries: Sequence[str]) -> dict[str, Any]:
    """Figures over ``queries``, each ``[value, low, high]`` with a 95 % bootstrap over queries.

    ``relevance`` and ``plain_relevance`` are over those queries whose rewrites, and who themselves,
    find something; ``judged`` says how many these are. A query that finds nothing by itself has
    nothing to compare with.
    """
    rows = [judged[q] for q in queries]
    both = [(r.relevance, r.plain) for r in rows if r.relevance is not None and r.plain is not None]
    return {
        "judged": len(both),
        "relevance": bootstrap([r for r, _ in both]).as_list(),
        "plain_relevance": bootstrap([p for _, p in both]).as_list(),
        "relevance_change": bootstrap([r - p for r, p in both]).as_list(),
        "hit_rate": hit_rate([r.hits for r in rows], [r.engaged for r in rows]).as_list(),
    }


def hit_rate(hits: Sequence[int], engaged: Sequence[int], seed: int = 0) -> Interval:
    """sum(hits) / sum(engaged) with a 95 % percentile bootstrap that draws queries again.

    Without engaged products it is NaN.
    """
    tops, bottoms = np.asarray(hits, dtype=float), np.asarray(engaged, dtype=float)
    keep = bottoms > 0
    tops, bottoms = tops[keep], bottoms[keep]
    if bottoms.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):
        picks = rng.integers(0, bottoms.size, (500, bottoms.size))
        ratios[start : start + 500] = tops[picks].sum(axis=1) / bottoms[picks].sum(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(tops.sum() / bottoms.sum()), float(low), float(high))
