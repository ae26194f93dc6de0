"""One ranking out of that of the query and those of its rewrites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from service.client import Rewrite

RRF_K = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""
REWRITE_WEIGHT = 0.6
"""What a rewrite's ranking counts beside the query's own 1: see docs/evaluation.md.

A rewrite adds products; at equal weights it pushes out too much of what the query itself finds.
"""


def weight(rewrite: Rewrite) -> float:
    """What the ranking of ``rewrite`` counts: less, the less the model believes in it."""
    return round(REWRITE_WEIGHT * rewrite.relevance, 4)


def fuse(
    rankings: Sequence[Sequence[str]], weights: Sequence[float], depth: int = 100
) -> list[str]:
    """Weighted reciprocal rank fusion: each ranking gives a product weight / (RRF_K + rank).

    Args:
        rankings: product ids, best first; of equals, those of an earlier ranking come first.
        weights: one for each ranking.
        depth: products wanted.
    """
    scores: dict[str, float] = defaultdict(float)
    for ranking, share in zip(rankings, weights, strict=True):
        for rank, product in enumerate(ranking, start=1):
            scores[product] += share / (RRF_K + rank)
    return sorted(scores, key=scores.__getitem__, reverse=True)[:depth]
